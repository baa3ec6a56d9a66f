"""Which weights a model name means, their hash, and how they are loaded. Imports torch only to load."""

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core.config import ModelConfig
from popalign_core.errors import ConfigError, MissingWeightsError

if TYPE_CHECKING:
    import torch

MODEL_INDEX = "model_index.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Weights and everything that decides what they compute: configs, tokenizer vocabularies and merges.
HASHED_SUFFIXES = (".safetensors", ".json", ".txt")


def local_folder(model: ModelConfig) -> Path | None:
    """The folder a model lies in; None for a hub id.

    Raises:
        ConfigError: When the name is a hub id without revision, or neither a folder nor a hub id.
        MissingWeightsError: When the folder holds no diffusers pipeline.
    """
    if model.name == "portraits":
        from popalign_core.portraits import weights_folder

        return _checked(
            weights_folder() / "pipeline", "run `popalign portraits train --data DIR`, or restore the folder"
        )
    if Path(model.name).is_dir():
        return _checked(Path(model.name), "give a folder written by `save_pretrained`")
    if HUB_ID.fullmatch(model.name) is None:
        raise MissingWeightsError(
            f"model {model.name!r} is no folder and no hub id; give a diffusers folder or 'owner/name'"
        )
    if model.revision is None:
        raise ConfigError(f"model {model.name!r} has no revision; give the commit, so that the weights cannot change")
    return None


def model_hash(model: ModelConfig) -> str:
    """What identifies a model's weights in artifact keys, wherever they lie.

    Returns:
        sha256 over names and bytes of the local weight and configuration files; `id@revision` for a hub id.

    Raises:
        ConfigError: As `local_folder`.
        MissingWeightsError: As `local_folder`.
    """
    folder = local_folder(model)
    if folder is None:
        return f"{model.name}@{model.revision}"
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file() and path.suffix in HASHED_SUFFIXES:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def resolve_device(name: str) -> "torch.device":
    """`auto` takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        ConfigError: When the name is unknown to torch or the device is not there.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown to torch; give auto, cpu, cuda, cuda:N or mps") from error
    present = available.get(device.type, False)
    if device.type == "cuda" and present:
        present = (device.index or 0) < torch.cuda.device_count()
    if not present:
        here = [kind for kind, is_there in available.items() if is_there]
        raise ConfigError(f"device {name!r} is not on this machine, which has {here}; use auto or one of these")
    return device


def load_pipeline(
    model: ModelConfig,
    *,
    device: "torch.device",
    folder: Path | None = None,
    components: Collection[str] | None = None,
) -> Any:
    """Load a pipeline for sampling and training. Nothing is downloaded: a hub id is read from the local hub cache.

    The VAE of a half-precision pipeline is kept in float32 where it asks for that (`force_upcast`: SDXL's overflows).

    Args:
        model: Name, revision and dtype.
        device: Where the modules go.
        folder: Loads this folder in place of the model's own (an aligned copy).
        components: Loads these alone, and None stands for the others: training needs neither text encoders nor VAE.

    Returns:
        The pipeline in eval mode, its progress bar off.

    Raises:
        ConfigError: As `local_folder`.
        MissingWeightsError: Naming what is missing and how to get it.
    """
    import torch
    from diffusers import DiffusionPipeline

    source = _checked(folder, "give a folder that training wrote") if folder is not None else local_folder(model)
    options: dict[str, Any] = {
        "dtype": getattr(torch, model.dtype),
        "use_safetensors": True,
        "local_files_only": True,
    }
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            source or model.name,
            revision=None if source else model.revision,
            **_left_out(source or model.name, model.revision, components),
            **options,
        )
    except (OSError, json.JSONDecodeError) as error:
        what = str(source or f"{model.name}@{model.revision}")
        fix = "restore its files" if source else f"run `hf download {model.name} --revision {model.revision}`"
        raise MissingWeightsError(f"cannot load the pipeline {what}: {error}; {fix}") from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    vae = pipeline.vae
    if vae is not None and getattr(vae.config, "force_upcast", False) and vae.dtype != torch.float32:
        vae.to(torch.float32)
    return pipeline


def _left_out(source: Path | str, revision: str | None, components: Collection[str] | None) -> dict[str, None]:
    """The components that are not wanted, and those the model was saved without: diffusers loads SD3 without its T5
    only where None is asked for.
    """
    from huggingface_hub import try_to_load_from_cache

    if isinstance(source, Path):
        path: object = source / MODEL_INDEX
    else:
        path = try_to_load_from_cache(source, MODEL_INDEX, revision=revision)
    if not isinstance(path, str | Path):
        return {}  # from_pretrained says what is missing
    index = json.loads(Path(path).read_text(encoding="utf-8"))
    return {
        name: None
        for name, entry in index.items()
        if isinstance(entry, list) and (entry[0] is None or (components is not None and name not in components))
    }


def _checked(folder: Path, fix: str) -> Path:
    if not (folder / "model_index.json").is_file():
        raise MissingWeightsError(f"{folder} holds no diffusers pipeline (no model_index.json); {fix}")
    return folder
