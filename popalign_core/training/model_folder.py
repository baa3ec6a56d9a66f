"""What training leaves: a pipeline folder and, of a LoRA, its weights alone."""

import json
import shutil
from pathlib import Path
from typing import Any

from popalign_core.models.denoisers import family_of, find_denoiser
from popalign_core.models.loading import LORA_FILE
from popalign_core.training.trainable_weights import ADAPTER_NAME

_ORIGIN = "_name_or_path"
"""What diffusers notes in every configuration that it writes."""
_ALIGNED = 8
"""Bytes: where the tensors of a file of safetensors may begin."""


def save_lora(pipeline: Any, folder: Path) -> None:
    """Write the adapter as `pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights(folder)` reads.

    Raises:
        KeyError: When the denoiser carries no adapter of ours.
    """
    from peft import get_peft_model_state_dict

    model = find_denoiser(pipeline)
    adapter = model.peft_config[ADAPTER_NAME]
    component = family_of(model).component
    layers = {
        f"{component}_lora_layers": get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME),
        # rank and alpha, which the weights do not tell; sets in order, or two processes would write other bytes
        f"{component}_lora_adapter_metadata": {
            name: sorted(value) if isinstance(value, set) else value for name, value in adapter.to_dict().items()
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.save_lora_weights(folder, safe_serialization=True, **layers)
    _order_header(folder / LORA_FILE)


def _order_header(file: Path) -> None:
    """The same bytes from every process: safetensors writes the entries of its metadata in an order of chance."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // _ALIGNED) * _ALIGNED)
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def save_model(pipeline: Any, folder: Path) -> None:
    """Write the whole pipeline as safetensors that diffusers loads, in the dtype it has.

    A LoRA adapter is first merged into the denoiser. The folder is renamed into place when it is complete.
    """
    model = find_denoiser(pipeline)
    if getattr(model, "peft_config", None):
        model.fuse_lora()
        model.unload_lora()
    partial = folder.with_name(folder.name + ".partial")
    for stale in (partial, folder):
        if stale.exists():
            shutil.rmtree(stale)
    pipeline.save_pretrained(partial, safe_serialization=True)
    _forget_origin(partial)
    partial.rename(folder)


def _forget_origin(folder: Path) -> None:
    """Take out where the base model lay: the same training elsewhere writes the same bytes, and a path is private."""
    for path in folder.rglob("*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and document.pop(_ORIGIN, None) is not None:
            path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
