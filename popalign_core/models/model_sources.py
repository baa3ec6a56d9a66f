"""Where a model, its denoiser and its LoRA come from, as far as that is known."""

import re
from pathlib import Path

from popalign_core.config import ModelConfig
from popalign_core.errors import PopAlignError
from popalign_core.models.weights_digest import DENOISERS
from popalign_core.sources import HubFiles

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PUBLIC_LORAS = {f"sdxl_lightning_{steps}step_lora.safetensors": "ByteDance/SDXL-Lightning" for steps in (2, 4, 8)}
PUBLIC_DENOISERS = {"dpo-sdxl": "mhdang/dpo-sdxl-text2image-v1", "dpo-sd15": "mhdang/dpo-sd1.5-text2image-v1"}
"""Folder in which the UNet lies as `unet` -> repository."""
PUBLIC_VAES = {"sdxl-vae-fp16-fix": "madebyollin/sdxl-vae-fp16-fix"}
"""Folder -> repository."""


def replaced_names(model: ModelConfig) -> tuple[str, ...]:
    """Parts of a pipeline whose own weights are not read."""
    return (*(DENOISERS if model.denoiser is not None else ()), *(("vae",) if model.vae is not None else ()))


def pipeline_source(model: ModelConfig) -> HubFiles | None:
    """The repository of a hub id with a revision, or that of a single file's configurations; None for others."""
    from popalign_core.models.single_files import config_source, is_single_file

    if is_single_file(model.name):
        try:
            return config_source(model)
        except PopAlignError:  # whoever reads the file says what is wrong with it
            return None
    if model.name == "portraits" or Path(model.name).is_dir() or model.revision is None:
        return None
    if HUB_ID.fullmatch(model.name) is None:
        return None
    return HubFiles(model.name, "pipeline", "model", model.revision, replaced=replaced_names(model))


def denoiser_source(model: ModelConfig) -> HubFiles | None:
    """The repository of a denoiser, by the folder's usual name: `dpo-sdxl/unet`; None for others."""
    folder = Path(model.denoiser or "")
    if folder.name != "unet" or folder.parent.name not in PUBLIC_DENOISERS:
        return None
    return HubFiles(PUBLIC_DENOISERS[folder.parent.name], "network", "denoiser", inside="unet", place=folder)


def vae_source(model: ModelConfig) -> HubFiles | None:
    """The repository of a VAE, by the folder's usual name; None for others."""
    folder = Path(model.vae or "")
    if folder.name not in PUBLIC_VAES:
        return None
    return HubFiles(PUBLIC_VAES[folder.name], "network", "vae", place=folder)


def lora_source(place: str) -> HubFiles | None:
    """The repository of a LoRA, by the file's usual name; None for others."""
    file = Path(place)
    if file.name not in PUBLIC_LORAS:
        return None
    return HubFiles(PUBLIC_LORAS[file.name], "file", "lora", inside=file.name, place=file)
