"""Which weights a model name means, their hash, and how they are loaded. Imports torch only to load."""

import hashlib
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core.config import ModelConfig
from popalign_core.documents import read_json
from popalign_core.errors import ConfigError, DamagedWeightsError, MissingWeightsError
from popalign_core.models.linked_files import check_links
from popalign_core.models.lora_files import ADAPTER_FILE, adapter_settings
from popalign_core.models.model_sources import HUB_ID, denoiser_source, lora_source, pipeline_source
from popalign_core.sources import how_to_get

if TYPE_CHECKING:
    import torch

    from popalign_core.models.trained_weights import TrainedModel

MODEL_INDEX = "model_index.json"
# Weights and everything that decides what they compute: configs, tokenizer vocabularies and merges.
HASHED_SUFFIXES = (".safetensors", ".json", ".txt")
DENOISERS = ("unet", "transformer")
# What the other parts of a pipeline hand to its denoiser, in the words of the denoiser's configuration.
DENOISER_SHAPE = (
    *("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type"),
    *("projection_class_embeddings_input_dim", "joint_attention_dim", "pooled_projection_dim"),
)
# Goes up when the same LoRA file comes to mean other weights; "lora" left out tensors whose names it did not know.
_LORA_TAG = "lora-2"
LORA_FILE = "pytorch_lora_weights.safetensors"


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
        raise ConfigError(
            f"model {model.name!r} is no folder here, and as a hub id it has no revision; correct the path, or give "
            "the commit as model.revision, so that the weights cannot change"
        )
    return None


def denoiser_folder(model: ModelConfig) -> Path | None:
    """The folder of the denoiser that takes the place of the model's own; None without one.

    Raises:
        MissingWeightsError: When the folder holds no denoiser.
    """
    if model.denoiser is None:
        return None
    folder = Path(model.denoiser)
    if not (folder / "config.json").is_file():
        fix = (
            "give a folder with config.json and safetensors, as `hf download OWNER/NAME --include 'unet/*' "
            "--local-dir DIR` leaves in DIR/unet"
        )
        if (source := denoiser_source(model)) is not None:
            fix = how_to_get(source)
        raise MissingWeightsError(f"model.denoiser {model.denoiser!r} holds no denoiser (no config.json); {fix}")
    return folder


def lora_file(model: ModelConfig) -> Path | None:
    """The file of the LoRA; None without one.

    Raises:
        MissingWeightsError: When it is not there.
    """
    if model.lora is None:
        return None
    path = Path(model.lora)
    names = [name for name in (LORA_FILE, ADAPTER_FILE) if (path / name).is_file()] if path.is_dir() else []
    file = path / (names or [LORA_FILE])[0] if path.is_dir() else path
    if not file.is_file():
        fix = (
            f"give a .safetensors file, or a folder with {LORA_FILE}, as training leaves in runs/NAME/lora, or with "
            f"{ADAPTER_FILE} and adapter_config.json, as peft saves"
        )
        if (source := lora_source(model)) is not None:
            fix = how_to_get(source)
        raise MissingWeightsError(f"model.lora {model.lora!r}: there is no {file}; {fix}")
    return file


def model_hash(model: ModelConfig) -> str:
    """What identifies a model's weights in artifact keys, wherever they lie.

    Returns:
        `hash_folder` of a local model, `id@revision` for a hub id; then what is put in place of its denoiser, and what
        is fused into it at which scale, if anything is.

    Raises:
        ConfigError: As `local_folder`.
        MissingWeightsError: As `local_folder`, `denoiser_folder` and `lora_file`.
    """
    folder = local_folder(model)
    parts = [hash_folder(folder) if folder else f"{model.name}@{model.revision}"]
    if (denoiser := denoiser_folder(model)) is not None:
        parts.append(f"denoiser:{hash_folder(denoiser)}")
    if (lora := lora_file(model)) is not None:
        settings = adapter_settings(lora)
        beside = f"&{hash_file(settings)}" if settings is not None else ""
        parts.append(f"{_LORA_TAG}:{hash_file(lora)}{beside}*{model.lora_scale!r}")
    return "+".join(parts)


def reads_guidance(model: ModelConfig) -> bool:
    """Whether its denoiser is told `guidance_scale` (FLUX.1-dev), by the configuration that lies with the weights.

    Raises:
        ConfigError: As `local_folder`.
        MissingWeightsError: As `local_folder` and `denoiser_folder`.
    """
    if (folder := denoiser_folder(model)) is not None:
        config = _read_json(folder, None, "config.json")
    else:
        config = _read_json(local_folder(model) or model.name, model.revision, "transformer/config.json")
    return bool(config.get("guidance_embeds"))


def hash_folder(folder: Path, suffixes: Collection[str] | None = HASHED_SUFFIXES) -> str:
    """sha256 over names and bytes of a folder's weight and configuration files, or with None of all its files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file() and (suffixes is None or path.suffix in suffixes):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{hash_file(path)}\n".encode())
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
    trained: "TrainedModel | None" = None,
    components: Collection[str] | None = None,
) -> Any:
    """Load a pipeline for sampling and training. Nothing is downloaded: a hub id is read from the local hub cache.

    The VAE of a half-precision pipeline is kept in float32 where it asks for that (`force_upcast`: SDXL's overflows).
    A LoRA is fused into the weights, and then these are cast as `model.storage` says, before they move: they are the
    same on every device.

    Args:
        model: Name, revision, dtype, storage, denoiser and LoRA.
        device: Where the modules go.
        trained: Loads this in place of the model, which gives dtype and storage alone then.
        components: Loads these alone, and None stands for the others: training needs neither text encoders nor VAE.

    Returns:
        The pipeline in eval mode, its progress bar off.

    Raises:
        ConfigError: As `local_folder`; when denoiser or LoRA are another model's.
        MissingWeightsError: Naming what is missing and how to get it.
    """
    import torch

    wanted = components
    if trained is not None:
        model, components = trained.beneath(model, components)
    source = local_folder(model) or model.name
    pipeline = _load_parts(model, source, components)
    if (lora := lora_file(model)) is not None:
        from popalign_core.models.lora import fuse_lora

        fuse_lora(pipeline, lora, model.lora_scale)
    if trained is not None:
        trained.put_into(pipeline, model, wanted)
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if model.storage is not None and denoiser is not None:
        from popalign_core.models.float8 import store_as_float8

        store_as_float8(denoiser)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if pipeline.text_encoder is not None and getattr(pipeline, "text_encoder_3", pipeline) is None:
        _outline_transformer(pipeline, source, model.revision)
    vae = pipeline.vae
    if vae is not None and getattr(vae.config, "force_upcast", False) and vae.dtype != torch.float32:
        vae.to(torch.float32)
    return pipeline


def _outline_transformer(pipeline: Any, source: Path | str, revision: str | None) -> None:
    """Without its T5, SD3 asks the transformer how wide the zeros in T5's place are: one without weights will do."""
    import torch
    from diffusers import SD3Transformer2DModel

    if pipeline.transformer is None:
        with torch.device("meta"):
            outline = SD3Transformer2DModel.from_config(_read_json(source, revision, "transformer/config.json"))
        pipeline.register_modules(transformer=outline)


def _load_parts(model: ModelConfig, source: Path | str, components: Collection[str] | None) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    from popalign_core.models.parts_fit import check_parts
    from popalign_core.models.pipeline_parts import check_index, load_pipeline_parts, snapshot
    from popalign_core.models.weights_check import PartFolder

    is_local = isinstance(source, Path)
    what = str(source) if is_local else f"{model.name}@{model.revision}"
    fix = how_to_get(public) if (public := pipeline_source(model)) else "restore its files"
    folder = snapshot(source, model.revision, MODEL_INDEX)
    if folder is None:
        raise MissingWeightsError(f"cannot load the pipeline {what}: it is not in the local hub cache; {fix}")
    root = PartFolder(f"the pipeline {what}", folder, fix)
    index = root.read_settings(MODEL_INDEX)
    check_index(index, root, components)
    given: dict[str, Any] = _left_out(index, components)
    given |= _load_denoiser(model, source, index, components)
    dtype = getattr(torch, model.dtype)
    given |= load_pipeline_parts(index, root, dtype=dtype, wanted=components, given=given)
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            source,
            revision=None if is_local else model.revision,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **given,
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise root.refusal(error) from error
    check_parts(pipeline, root)
    return pipeline


def _left_out(index: dict[str, Any], components: Collection[str] | None) -> dict[str, None]:
    """The components that are not wanted, and those the model was saved without: diffusers loads SD3 without its T5
    only where None is asked for.
    """
    return {
        name: None
        for name, entry in index.items()
        if isinstance(entry, list) and (entry[0] is None or (components is not None and name not in components))
    }


def _load_denoiser(
    model: ModelConfig, source: Path | str, index: dict[str, Any], components: Collection[str] | None
) -> dict[str, Any]:
    """The denoiser in place of the pipeline's own, by its component's name; nothing when none is asked for."""
    import diffusers
    import torch

    from popalign_core.models.weights_check import PartFolder, load_module

    folder = denoiser_folder(model)
    component = next((name for name in DENOISERS if name in index), None)
    if folder is None or component is None or (components is not None and component not in components):
        return {}
    own = {"_class_name": index[component][1]} | _read_json(source, model.revision, f"{component}/config.json")
    part = PartFolder("model.denoiser", folder, "restore its files")
    config = part.read_settings()
    differing = {name: (config.get(name), own.get(name)) for name in ("_class_name", *DENOISER_SHAPE) if name in own}
    wrong = [f"{name} {new}, not {old}" for name, (new, old) in differing.items() if new != old]
    if wrong:
        raise ConfigError(
            f"model.denoiser {folder} does not fit {model.name}: its config.json has {'; '.join(wrong)}; "
            "give a denoiser that was trained from this model"
        )
    kind = getattr(diffusers, str(own["_class_name"]), None)
    if kind is None:
        raise part.refusal(f"diffusers has no class {own['_class_name']!r}")
    return {component: load_module(kind, part, getattr(torch, model.dtype))}


def _read_json(source: Path | str, revision: str | None, name: str) -> dict[str, Any]:
    """A file of a folder, or of a hub id in the local cache; empty where there is none."""
    from huggingface_hub import try_to_load_from_cache

    path = source / name if isinstance(source, Path) else try_to_load_from_cache(source, name, revision=revision)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}  # from_pretrained says what is missing
    try:
        document = read_json(Path(path).read_bytes())
    except ValueError as error:
        raise DamagedWeightsError(f"{path} is not JSON ({error}); get the model's files again") from error
    if not isinstance(document, dict):
        raise DamagedWeightsError(f"{path} is no JSON object but {document!r:.60}; get the model's files again")
    return document


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes; in one process a file that has not changed is read once, however many keys need it."""
    status = path.stat()
    return _hash_content(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_content(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(folder: Path, fix: str) -> Path:
    if not (folder / MODEL_INDEX).is_file():
        raise MissingWeightsError(f"{folder} holds no diffusers pipeline (no model_index.json); {fix}")
    check_links(folder)
    return folder
