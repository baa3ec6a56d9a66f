"""Ways in which a folder of a model is broken, and loading what is left of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from popalign_core.config import ModelConfig
from popalign_core.models.loading import load_pipeline

Damage = Callable[[Path], Any]


def load(folder: Path, *parts: str) -> Any:
    return load_pipeline(ModelConfig(name=str(folder)), device=torch.device("cpu"), components=parts or None)


def weights_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(names: set[str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def settings(path: str, **changes: Any) -> Damage:
    """Change a JSON file's entries; `...` takes one away."""

    def change(folder: Path) -> None:
        document = json.loads((folder / path).read_text())
        document = {key: value for key, value in (document | changes).items() if value is not ...}
        (folder / path).write_text(json.dumps(document))

    return change


def text(path: str, content: str) -> Damage:
    return lambda folder: (folder / path).write_text(content)


def lost(*paths: str) -> Damage:
    def lose(folder: Path) -> None:
        for path in paths:
            place = folder / path
            shutil.rmtree(place) if place.is_dir() else place.unlink()

    return lose
