"""Features of images beside their scores: one safetensors file a shard, so that comparing sets reads no image."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from storage.store import ArtifactRef, Build, Store

if TYPE_CHECKING:
    from torch import Tensor

    from popalign_core.evaluation.quality.features import Extractor, Features

_FILE = "features-{:05d}.safetensors"
_ABOUT = "about"


def pack_features(
    shard: int,
    image_ids: Sequence[str],
    features: "Mapping[str, Sequence[Tensor]]",
    extractors: "Iterable[Extractor]",
) -> dict[str, bytes]:
    """The file of a shard's images, by its name; none where there is nothing to keep."""
    import torch

    from tasks.common.tensors import encode_tensors

    tensors = {name: torch.cat(list(batches)) for name, batches in features.items() if batches}
    if not tensors:
        return {}
    versions = {extractor.name: extractor.version for extractor in extractors}
    about = json.dumps({"image_ids": list(image_ids), "versions": versions})
    return {_FILE.format(shard): encode_tensors(tensors, {_ABOUT: about})}


def read_features(store: Store, scores: ArtifactRef) -> "dict[str, Features]":
    """The features of all images that stage `scores` has seen, by name; those it could not make are absent."""
    return _read(store.localize(scores))


def read_build(build: Build) -> "dict[str, Features]":
    """The same of an artifact in the making."""
    return _read(build.folder)


def _read(folder: Path) -> "dict[str, Features]":
    import torch
    from safetensors import safe_open

    from popalign_core.evaluation.quality.features import Features

    image_ids: list[str] = []
    versions: dict[str, str] = {}
    parts: dict[str, list[Tensor]] = {}
    for path in sorted(folder.glob("features-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()[_ABOUT])
            image_ids, versions = image_ids + about["image_ids"], about["versions"]
            for name in file.keys():  # noqa: SIM118 (no mapping)
                parts.setdefault(name, []).append(file.get_tensor(name))
    return {name: Features(versions[name], image_ids, torch.cat(tensors)) for name, tensors in parts.items()}
