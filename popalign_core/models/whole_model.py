"""A whole pipeline in a new folder: a base model's own files, and what trainings made of its denoiser."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from popalign_core.config import ModelConfig
from popalign_core.models.linked_files import Place
from popalign_core.models.loading import load_pipeline
from popalign_core.models.local_models import MODEL_INDEX
from popalign_core.models.model_files import find_pipeline_folder, weights_stem
from popalign_core.models.replaced_parts import denoiser_folder, vae_folder
from popalign_core.models.trained_weights import TrainedModel
from popalign_core.models.weights_check import PartFolder, chosen_weights
from popalign_core.models.weights_digest import DENOISERS

ORIGIN = "_name_or_path"
"""What diffusers notes in every configuration that it writes: where the model lay, which is private."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".xml")
_TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def write_whole_model(
    folder: Path, model: TrainedModel, dtype: str, put: Place, put_trained: Place | None = None
) -> None:
    """Write a pipeline that diffusers loads with `from_pretrained`: the model as it is sampled from.

    Args:
        folder: To write into; there, and empty.
        model: Base model and trainings.
        dtype: Of what is merged; what is taken as it lies keeps its own.
        put: How the base model's own files come here.
        put_trained: How a trained denoiser's do; as the base model's when not given.

    Raises:
        MissingWeightsError: When a file of the base model is not there.
        ConfigError: When an adapter is another model's.
    """
    source = find_pipeline_folder(model.base)
    index = PartFolder(f"the pipeline {source}", source, "get the model's files again").read_settings(MODEL_INDEX)
    _write_json(folder / MODEL_INDEX, {name: value for name, value in index.items() if name != ORIGIN})
    parts = {name: entry[0] for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None}
    base = model.base.model_copy(update={"dtype": dtype, "storage": None})
    merged = _merged_texts(base, parts)
    denoiser = next((name for name in DENOISERS if name in parts), None)
    for name, library in parts.items():
        own = vae_folder(model.base) if name == "vae" else None
        own = own or source / name
        if name != denoiser and name not in merged and own.is_dir():
            take_part(own, folder / name, weights_stem(library), put)
    if denoiser is not None:
        needed = model.parts_needed
        own = denoiser_folder(model.base) or source / denoiser
        if len(needed) == 1 and not needed[0].is_lora:
            take_part(needed[0].path, folder / denoiser, weights_stem("diffusers"), put_trained or put)
        elif not needed and not model.base.all_loras:
            take_part(own, folder / denoiser, weights_stem("diffusers"), put)
        else:
            pipeline = _load(base, model, (denoiser,))
            merged |= {denoiser: getattr(pipeline, denoiser)}
    for name, module in merged.items():
        module.save_pretrained(folder / name, safe_serialization=True)
    forget_origin(folder, merged)


def _load(base: ModelConfig, model: TrainedModel, components: tuple[str, ...]) -> Any:
    import torch

    return load_pipeline(base, device=torch.device("cpu"), trained=model, components=components)


def _merged_texts(base: ModelConfig, parts: Mapping[str, str]) -> dict[str, Any]:
    """The text encoders that the base model's own LoRA changes; without one there are none, and none are loaded."""
    if not base.all_loras:
        return {}
    import torch

    names = tuple(name for name in _TEXTS if name in parts)
    plain = base.model_copy(update={"lora": None, "lora_scale": 1.0, "loras": ()})
    ours, theirs = (load_pipeline(each, device=torch.device("cpu"), components=names) for each in (base, plain))

    def is_changed(name: str) -> bool:
        before = getattr(theirs, name).state_dict()
        return any(not torch.equal(weight, before[key]) for key, weight in getattr(ours, name).state_dict().items())

    return {name: getattr(ours, name) for name in names if is_changed(name)}


def take_part(source: Path, target: Path, stem: str, put: Place) -> None:
    """Put a part's files into a new folder: settings and vocabularies, and of the weights those that are read.

    A half-precision variant gets the plain name, under which everybody looks for it.

    Args:
        source: The part's folder.
        target: The folder to make.
        stem: How its files of weights are called.
        put: How a file comes here.
    """
    target.mkdir()
    names = sorted(path.name for path in source.iterdir() if path.is_file())
    for name in names:
        if not name.endswith(_WEIGHTS) and ".safetensors.index." not in name and ".bin.index." not in name:
            put(source / name, target / name)
    for name in chosen_weights(names, stem):
        plain = f"{stem}.safetensors.index.json" if name.endswith(".json") else name
        if not name.endswith(".json") and "-of-" not in name:
            plain = f"{stem}.safetensors"
        put(source / name, target / plain)


def forget_origin(folder: Path, names: Iterable[str]) -> None:
    """Take out where the base model lay: the same training elsewhere writes the same bytes, and a path is private."""
    for name in names:
        for path in (folder / name).rglob("*.json"):
            document = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(document, dict) and document.pop(ORIGIN, None) is not None:
                _write_json(path, document)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
