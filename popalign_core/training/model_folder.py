"""What training leaves: the weights that it trained, alone, and a record of what they belong to."""

import json
from pathlib import Path
from typing import Any

from popalign_core.models.denoisers import family_of
from popalign_core.models.loading import LORA_FILE
from popalign_core.models.trained_weights import LORA_FOLDER, TRAINED_FILE, TrainingRecord
from popalign_core.models.whole_model import forget_origin
from popalign_core.training.trainable_weights import ADAPTER_NAME

_ALIGNED = 8
"""Bytes: where the tensors of a file of safetensors may begin."""
_PIPELINES = {
    "SDXL": "StableDiffusionXLPipeline",
    "Stable Diffusion 1/2": "StableDiffusionPipeline",
    "Stable Diffusion 3": "StableDiffusion3Pipeline",
    "FLUX.1": "FluxPipeline",
    "FLUX.1-dev": "FluxPipeline",
}
"""Family -> class whose format its LoRAs are written in."""


def save_trained(denoiser: Any, record: TrainingRecord, folder: Path) -> None:
    """Write what was trained: `lora/`, or the denoiser in a folder of its component's name; and `trained.json`.

    Args:
        denoiser: Trained; with an adapter of ours where the record says `lora`.
        record: Of the training.
        folder: To write into; what an earlier attempt left there is replaced.
    """
    if record.is_lora:
        save_lora(denoiser, folder / LORA_FOLDER)
    else:
        denoiser.save_pretrained(folder / record.component, safe_serialization=True)
        forget_origin(folder, (record.component,))
    (folder / TRAINED_FILE).write_text(record.to_json(), encoding="utf-8")


def save_lora(denoiser: Any, folder: Path) -> None:
    """Write the adapter as `pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights(folder)` reads.

    Raises:
        KeyError: When the denoiser carries no adapter of ours.
    """
    import diffusers
    from peft import get_peft_model_state_dict

    adapter, family = denoiser.peft_config[ADAPTER_NAME], family_of(denoiser)
    layers = {
        f"{family.component}_lora_layers": get_peft_model_state_dict(denoiser, adapter_name=ADAPTER_NAME),
        # rank and alpha, which the weights do not tell; sets in order, or two processes would write other bytes
        f"{family.component}_lora_adapter_metadata": {
            name: sorted(value) if isinstance(value, set) else value for name, value in adapter.to_dict().items()
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    getattr(diffusers, _PIPELINES[family.name]).save_lora_weights(folder, safe_serialization=True, **layers)
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
