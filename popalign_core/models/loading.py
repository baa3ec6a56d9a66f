"""Which weights a model name means, their hash, and how they are loaded. Imports torch only to load."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core.config import ModelConfig
from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.models.file_hashes import hash_file
from popalign_core.models.local_models import MODEL_INDEX, local_folder
from popalign_core.models.lora_files import ADAPTER_FILE, adapter_settings
from popalign_core.models.model_sources import lora_source, pipeline_source, replaced_names
from popalign_core.models.pipeline_parts import snapshot
from popalign_core.models.replaced_parts import denoiser_folder, read_model_json, vae_folder
from popalign_core.models.weights_digest import has_weights, network_digest, pipeline_digest
from popalign_core.sources import how_to_get

if TYPE_CHECKING:
    import torch

    from popalign_core.models.trained_weights import TrainedModel

# Goes up when the same LoRA file comes to mean other weights; "lora" left out tensors whose names it did not know.
_LORA_TAG = "lora-2"
LORA_FILE = "pytorch_lora_weights.safetensors"


def lora_file(place: str) -> Path:
    """The file of a LoRA.

    Args:
        place: File or folder, as the configuration has it.

    Raises:
        MissingWeightsError: When it is not there.
    """
    path = Path(place)
    names = [name for name in (LORA_FILE, ADAPTER_FILE) if (path / name).is_file()] if path.is_dir() else []
    file = path / (names or [LORA_FILE])[0] if path.is_dir() else path
    if not file.is_file():
        fix = (
            f"give a .safetensors file, or a folder with {LORA_FILE}, as training leaves in runs/NAME/lora, or with "
            f"{ADAPTER_FILE} and adapter_config.json, as peft saves"
        )
        if (source := lora_source(place)) is not None:
            fix = how_to_get(source)
        raise MissingWeightsError(f"the LoRA {place!r}: there is no {file}; {fix}")
    return file


def model_hash(model: ModelConfig) -> str:
    """What identifies a model's weights in artifact keys, wherever they lie.

    Returns:
        `pipeline_digest`, which is equal for one checkpoint in whatever form; of a hub id that is not in the local
        cache, and that no store knows, `id@revision`. Then what is put in place of its denoiser and its VAE, and what
        is fused into it at which scale, if anything is.

    Raises:
        ConfigError: As `local_folder`.
        MissingWeightsError: As `local_folder`, `denoiser_folder`, `vae_folder` and `lora_file`.
    """
    parts = [own_hash(model)]
    if (denoiser := denoiser_folder(model)) is not None:
        parts.append(f"denoiser:{network_digest(denoiser)}")
    if (vae := vae_folder(model)) is not None:
        parts.append(f"vae:{network_digest(vae)}")
    for lora in model.all_loras:
        file = lora_file(lora.path)
        settings = adapter_settings(file)
        beside = f"&{hash_file(settings)}" if settings is not None else ""
        parts.append(f"{_LORA_TAG}:{hash_file(file)}{beside}*{lora.scale!r}")
    return "+".join(parts)


def own_hash(model: ModelConfig) -> str:
    """`model_hash` without what is put in place or fused in."""
    folder, replaced = local_folder(model), replaced_names(model)
    if folder is None and (found := snapshot(model.name, model.revision, MODEL_INDEX)) is not None:
        folder = found if has_weights(found, replaced) else None  # the configurations alone may be there
    if folder is not None:
        return pipeline_digest(folder, replaced)
    label = hub_label(model)
    return _HUB_HASHES.get(str(label), str(label))


def hub_label(model: ModelConfig) -> str | None:
    """Id, revision, and which parts are not read, of a hub id; None for what lies here.

    Raises:
        ConfigError: As `local_folder`.
        MissingWeightsError: As `local_folder`.
    """
    if local_folder(model) is not None:
        return None
    return "-".join((f"{model.name}@{model.revision}", *replaced_names(model)))


def know_hub_hash(label: str, found: str) -> None:
    """What `own_hash` is to say in this process of a hub model whose weights are not here.

    Args:
        label: Of `hub_label`.
        found: Its hash where the weights were.
    """
    _HUB_HASHES[label] = found


_HUB_HASHES: dict[str, str] = {}


def reads_guidance(model: ModelConfig) -> bool:
    """Whether its denoiser is told `guidance_scale` (FLUX.1-dev), by the configuration that lies with the weights.

    Raises:
        ConfigError: As `local_folder`.
        MissingWeightsError: As `local_folder` and `denoiser_folder`.
    """
    if (folder := denoiser_folder(model)) is not None:
        config = read_model_json(folder, None, "config.json")
    else:
        config = read_model_json(local_folder(model) or model.name, model.revision, "transformer/config.json")
    return bool(config.get("guidance_embeds"))


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
    for lora in model.all_loras:
        from popalign_core.models.lora import fuse_lora

        fuse_lora(pipeline, lora_file(lora.path), lora.scale)
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
            outline = SD3Transformer2DModel.from_config(read_model_json(source, revision, "transformer/config.json"))
        pipeline.register_modules(transformer=outline)


def _load_parts(model: ModelConfig, source: Path | str, components: Collection[str] | None) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    from popalign_core.models.parts_fit import check_parts
    from popalign_core.models.pipeline_parts import check_index, load_pipeline_parts
    from popalign_core.models.replaced_parts import load_replaced_parts
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
    given |= load_replaced_parts(model, source, index, components)
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
