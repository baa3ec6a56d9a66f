"""Whether a model's files are all there, by their names and sizes: what can be known in a moment, without torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from popalign_core.config import ModelConfig
from popalign_core.documents import read_json
from popalign_core.errors import DamagedWeightsError, MissingWeightsError
from popalign_core.models.loading import lora_file
from popalign_core.models.local_models import MODEL_INDEX, local_folder
from popalign_core.models.model_sources import denoiser_source, lora_source, pipeline_source, replaced_names, vae_source
from popalign_core.models.pipeline_parts import snapshot
from popalign_core.models.replaced_parts import denoiser_folder, vae_folder
from popalign_core.models.weights_check import PartFolder, weight_files
from popalign_core.models.weights_digest import NETWORKS
from popalign_core.sources import Source, how_to_get

_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""A tokenizer needs all the files of one of them."""


def find_pipeline_folder(model: ModelConfig) -> Path:
    """The folder of a model's pipeline, in which no file is missing and no file of weights is cut off.

    Raises:
        ConfigError: As `local_models.local_folder`.
        MissingWeightsError: When the pipeline or one of its files is not there; says how to get it.
        DamagedWeightsError: When a file is missing, or one of weights is not whole; names all of them.
    """
    source = local_folder(model) or model.name
    fix = how_to_get(public) if (public := pipeline_source(model)) else "restore its files"
    what = f"the pipeline {source}" if isinstance(source, Path) else f"the pipeline {model.name}@{model.revision}"
    folder = snapshot(source, model.revision, MODEL_INDEX)
    if folder is None:
        raise MissingWeightsError(f"cannot load {what}: it is not in the local hub cache; {fix}")
    index = PartFolder(what, folder, fix).read_settings(MODEL_INDEX)
    problems = list[DamagedWeightsError]()
    for name, entry in index.items():
        is_replaced = name in replaced_names(model)
        if isinstance(entry, list) and isinstance(entry[0], str) and not is_replaced:
            try:
                _check_part(name, entry[0], PartFolder(f"{name} of {what}", folder / name, fix))
            except DamagedWeightsError as error:
                problems.append(error)
    if len(problems) > 1:
        raise DamagedWeightsError(
            "\n- ".join([f"{len(problems)} parts of the model are incomplete:", *map(str, problems)])
        )
    if problems:
        raise problems[0]
    return folder


def find_denoiser_folder(model: ModelConfig) -> Path | None:
    """The folder in place of the model's denoiser, with its files of weights; None without one.

    Raises:
        MissingWeightsError: When it is not there.
        DamagedWeightsError: When a file of weights is missing or not whole.
    """
    return _find_part("model.denoiser", denoiser_folder(model), denoiser_source(model))


def find_vae_folder(model: ModelConfig) -> Path | None:
    """The folder in place of the model's VAE, with its files of weights; None without one.

    Raises:
        MissingWeightsError: When it is not there.
        DamagedWeightsError: When a file of weights is missing or not whole.
    """
    return _find_part("model.vae", vae_folder(model), vae_source(model))


def find_lora_file(place: str) -> Path:
    """The file of a LoRA, whole.

    Raises:
        MissingWeightsError: When it is not there.
        DamagedWeightsError: When it is not whole.
    """
    file = lora_file(place)
    if file.suffix == ".safetensors":
        _check_whole(file, how_to_get(public) if (public := lora_source(place)) else "get the file again")
    return file


def weights_stem(library: str) -> str:
    """How the files of a network's weights are called, by the library that the pipeline's index names."""
    return "diffusion_pytorch_model" if library == "diffusers" else "model"


def _find_part(what: str, folder: Path | None, public: Source | None) -> Path | None:
    if folder is not None:
        fix = how_to_get(public) if public else "restore its files"
        _check_network(PartFolder(what, folder, fix), weights_stem("diffusers"))
    return folder


def _check_part(name: str, library: str, part: PartFolder) -> None:
    if name.startswith(NETWORKS):
        part.read_settings()
        _check_network(part, weights_stem(library))
    elif name == "scheduler":
        part.read_settings("scheduler_config.json")
    elif name.startswith("tokenizer"):
        if not any(all((part.path / file).is_file() for file in files) for files in _VOCABULARIES):
            raise part.refusal("there are no files of its vocabulary")
        part.read_settings("tokenizer_config.json")  # without it a text may be any length


def _check_network(part: PartFolder, stem: str) -> None:
    """Every file of weights, those that an index names among them."""
    found = weight_files(part.path, stem)
    if not found:
        raise part.refusal(f"it has no file named {stem}.safetensors")
    for file in found:
        if file.suffix == ".json":
            lacking = [name for name in _shards(file, part) if not (part.path / name).is_file()]
            if lacking:
                raise part.refusal(f"{file.name} names {lacking[0]}, which is not there")
        else:
            _check_whole(file, part.fix)


def _shards(index: Path, part: PartFolder) -> Iterator[str]:
    try:
        content: Any = read_json(index.read_bytes())
        yield from sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise part.refusal(f"{index.name} is no index of weights") from error


def _check_whole(file: Path, fix: str) -> None:
    """A file of safetensors says how long it is, so one that is cut off can be told by its first bytes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise DamagedWeightsError(f"{file} is damaged or incomplete ({error}); {fix}") from error
