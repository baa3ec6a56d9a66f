"""Small whole models of all families, scorers and classifiers, and what the product makes of their folders."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import transformers
from broken_models import load
from tiny_models import MODELS
from torch import Tensor, nn

from mutations.editing import copy_linked, read_document
from mutations.judging import Taker, popalign
from popalign_core.attributes.image_classifiers import load_transformers
from popalign_core.config import NetworkConfig
from popalign_core.models.clip import embed_images, embed_texts, load_clip
from popalign_core.portraits import weights_folder
from storage.store import ArtifactRef, Store

FAMILIES = ("sdxl", "sd15", "sd3", "flux-dev", "portraits")
CLASSIFIERS = ("vit", "efficientnet", "convnext")
COMMANDED = ("sdxl", "sd15")
"""Families that the command line samples from."""
TEXTS = ["judge", "a nurse"]


@dataclass(frozen=True)
class Model:
    """A folder that the product loads.

    Attributes:
        name: Of the model.
        taker: Loads it.
        networks: Folders in it with config.json and weights, and what messages call them.
        tokenizers: Folders in it with a vocabulary, likewise.
    """

    name: str
    taker: Taker
    networks: Mapping[str, str]
    tokenizers: Mapping[str, str]

    def copy(self, folder: Path) -> Path:
        """To be changed."""
        return copy_linked(self.taker.pristine, folder / "model")

    @property
    def is_pipeline(self) -> bool:
        return self.name in FAMILIES


class ModelWorld:
    """All models, made when they are first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._models: dict[str, Model] = {}

    def model(self, name: str) -> Model:
        if name not in self._models:
            folder = self.root / name
            make = _pipeline if name in FAMILIES else _clip if name == "clip" else _classifier
            self._models[name] = make(name, folder)
        return self._models[name]

    def any_model(self, random: Random, *names: str) -> Model:
        """One of those named, or of all."""
        return self.model(random.choice(names or (*FAMILIES, "clip", *CLASSIFIERS)))

    @cached_property
    def pipelines(self) -> dict[str, Any]:
        """Loaded, for copies."""
        return {name: load(self.model(name).taker.pristine) for name in ("sdxl", "flux-dev")}


def digest(values: Tensor | np.ndarray | bytes) -> str:
    """What tells arrays apart."""
    if isinstance(values, bytes):
        return hashlib.sha256(values).hexdigest()[:16]
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return f"{list(array.shape)} {digest(np.ascontiguousarray(array).tobytes())}"


def print_of(part: Any) -> Any:
    """What decides what a part of a pipeline computes."""
    if isinstance(part, nn.Module):
        return {name: digest(tensor) for name, tensor in part.state_dict().items()}
    if hasattr(part, "get_vocab"):
        return [part(text).input_ids for text in TEXTS]
    settings = getattr(part, "config", {})
    return type(part).__name__, {name: value for name, value in settings.items() if not name.startswith("_")}


def prints_of(pipeline: Any) -> dict[str, Any]:
    return {name: print_of(part) for name, part in pipeline.components.items() if part is not None}


def _read_pipeline(folder: Path, scratch: Path) -> Any:
    return prints_of(load(folder))


SETTINGS = {
    "axes": [{"name": "gender", "classes": ["male", "female"]}],
    "prompts": {"train_subjects": ["doctor"], "eval_subjects": ["judge"]},
    "sampling": {"n_steps": 1},
    "preferences": {"n_neutral": 1, "n_specific": 1, "set_size": 1},
}
"""One image of a prompt."""


def sample(model: Mapping[str, Any], scratch: Path) -> Any:
    """The images that the command line samples."""
    (scratch / "run.json").write_text(json.dumps(SETTINGS | {"model": model}))
    said = popalign("stage", "sample", "--config", str(scratch / "run.json"), "--root", str(scratch / "store"))
    store, ref = Store(str(scratch / "store")), ArtifactRef(*said.split()[-3].split("/"))
    table = store.read_table(ref, "images")
    return sorted((row["index"], digest(row["image"]["bytes"])) for row in table.to_dict("records"))


def _pipeline(name: str, folder: Path) -> Model:
    if name == "portraits":
        shutil.copytree(weights_folder() / "pipeline", folder)
    else:
        MODELS[name]().save_pretrained(folder, safe_serialization=True)
    index = read_document(folder / "model_index.json")
    parts = [part for part, entry in index.items() if isinstance(entry, list) and entry[0] is not None]
    command = (lambda given, scratch: sample({"name": str(given)}, scratch)) if name in COMMANDED else None
    return Model(
        name,
        Taker(folder, _read_pipeline, command),
        {part: f"cannot load {part} of" for part in parts if not part.startswith(("tokenizer", "scheduler"))},
        {part: f"cannot load {part} of" for part in parts if part.startswith("tokenizer")},
    )


IMAGES = [np.random.default_rng(seed).integers(0, 256, (48, 40 + 30 * seed, 3), np.uint8) for seed in range(2)]


def _read_clip(folder: Path, scratch: Path) -> Any:
    scorer = load_clip(folder)
    return print_of(scorer.model), digest(embed_texts(scorer, TEXTS)), digest(embed_images(scorer, [IMAGES]))


def _clip(name: str, folder: Path) -> Model:
    shutil.copytree(weights_folder() / "clip", folder)
    return Model(name, Taker(folder, _read_clip), {".": "the CLIP"}, {".": "the tokenizer of the CLIP"})


def _read_classifier(folder: Path, scratch: Path) -> Any:
    settings = NetworkConfig(kind="image-classifier", path=str(folder), axes={"hair": {"LABEL_0": "long"}})
    network = load_transformers(settings, "cpu")
    return network.labels, digest(network.run(IMAGES))


def _classifier(name: str, folder: Path) -> Model:
    kind, config, processor = _CLASSIFIERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config()).eval().save_pretrained(folder)
    document = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2} | processor
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    return Model(name, Taker(folder, _read_classifier), {".": "the image classifier"}, {})


_CLASSIFIERS: dict[str, tuple[Any, Callable[[], Any], dict[str, Any]]] = {
    "vit": (
        transformers.ViTForImageClassification,
        lambda: transformers.ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
        ),
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}},
    ),
    "efficientnet": (
        transformers.EfficientNetForImageClassification,
        lambda: transformers.EfficientNetConfig(
            image_size=32, width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, kernel_sizes=[3, 3],
            in_channels=[32, 16], out_channels=[16, 24], depthwise_padding=[], strides=[1, 2], num_block_repeats=[1, 1],
            expand_ratios=[1, 6],
        ),
        {"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 32, "width": 32},
         "include_top": True},
    ),
    "convnext": (
        transformers.ConvNextForImageClassification,
        lambda: transformers.ConvNextConfig(
            hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32, patch_size=4
        ),
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.8},
    ),
}  # fmt: skip
