"""Which files of a repository are read: one precision, safetensors alone, configurations and vocabularies."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from popalign_core.errors import MissingWeightsError
from popalign_core.models.model_files import weights_stem
from popalign_core.models.weights_check import chosen_weights
from popalign_core.models.weights_digest import NETWORKS
from popalign_core.sources import HubFiles

_WORDS = ("merges.txt", "vocab.txt", "spiece.model", "sentencepiece.model")


def choose_files(source: HubFiles, names: Collection[str], index: Mapping[str, Any]) -> list[str]:
    """The files of a repository that a source stands for.

    Args:
        source: What is wanted.
        names: Of all files in the repository.
        index: The content of its `model_index.json`; for a pipeline alone.

    Returns:
        Sorted names.

    Raises:
        MissingWeightsError: When the repository has no such file, or a network has no safetensors.
    """
    if source.kind == "file":
        if source.inside not in names:
            raise MissingWeightsError(f"{source.repo}@{source.revision} has no file {source.inside}; get it elsewhere")
        return [source.inside]
    if source.kind == "pipeline":
        return sorted(_of_pipeline(source, names, index))
    found = _texts(names, source.inside)
    if source.kind == "network":
        diffusers, others = (_weights(names, source.inside, weights_stem(name)) for name in ("diffusers", ""))
        found += _required(diffusers or others, source, source.inside)
    if not found:
        raise MissingWeightsError(f"{source.repo}@{source.revision} has no files of a {source.kind}; get it elsewhere")
    return sorted(found)


def _of_pipeline(source: HubFiles, names: Collection[str], index: Mapping[str, Any]) -> Iterator[str]:
    yield "model_index.json"
    for part, entry in index.items():
        if not isinstance(entry, list) or not isinstance(entry[0], str):
            continue
        if part in source.replaced:
            yield from (name for name in _texts(names, part) if name.endswith("/config.json"))
            continue
        yield from _texts(names, part)
        weights = _weights(names, part, weights_stem(entry[0]))
        yield from _required(weights, source, part) if part.startswith(NETWORKS) else weights


def _texts(names: Collection[str], folder: str) -> list[str]:
    """Configurations and vocabularies, but no index of weights: of these the one that is read comes with them."""
    return [
        name
        for name in _inside(names, folder)
        if name.endswith(_WORDS) or (name.endswith(".json") and ".index." not in name)
    ]


def _weights(names: Collection[str], folder: str, stem: str) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    here = [name.removeprefix(prefix) for name in _inside(names, folder)]
    return [f"{prefix}{name}" for name in chosen_weights(here, stem)]


def _required(weights: list[str], source: HubFiles, folder: str) -> list[str]:
    if not weights:
        inside = f" in {folder}/" if folder else ""
        raise MissingWeightsError(
            f"{source.repo}@{source.revision} has no safetensors{inside} that are read here; "
            "save it again with `save_pretrained(..., safe_serialization=True)`, and give the folder"
        )
    return weights


def _inside(names: Collection[str], folder: str) -> list[str]:
    return [name for name in names if PurePosixPath(name).parent == PurePosixPath(folder)]
