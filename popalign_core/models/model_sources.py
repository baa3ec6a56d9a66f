"""Where a model, its denoiser and its LoRA come from, as far as that is known."""

import re
from pathlib import Path

from popalign_core.config import ModelConfig
from popalign_core.sources import HubFiles

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PUBLIC_LORAS = {f"sdxl_lightning_{steps}step_lora.safetensors": "ByteDance/SDXL-Lightning" for steps in (2, 4, 8)}
PUBLIC_DENOISERS = {"dpo-sdxl": "mhdang/dpo-sdxl-text2image-v1", "dpo-sd15": "mhdang/dpo-sd1.5-text2image-v1"}
"""Folder in which the UNet lies as `unet` -> repository."""


def pipeline_source(model: ModelConfig) -> HubFiles | None:
    """The repository of a hub id with a revision; None for a folder."""
    if model.name == "portraits" or Path(model.name).is_dir() or model.revision is None:
        return None
    if HUB_ID.fullmatch(model.name) is None:
        return None
    replaced = () if model.denoiser is None else ("unet", "transformer")
    return HubFiles(model.name, "pipeline", "model", model.revision, replaced=replaced)


def denoiser_source(model: ModelConfig) -> HubFiles | None:
    """The repository of a denoiser, by the folder's usual name: `dpo-sdxl/unet`; None for others."""
    folder = Path(model.denoiser or "")
    if folder.name != "unet" or folder.parent.name not in PUBLIC_DENOISERS:
        return None
    return HubFiles(PUBLIC_DENOISERS[folder.parent.name], "network", "denoiser", inside="unet", place=folder)


def lora_source(model: ModelConfig) -> HubFiles | None:
    """The repository of a LoRA, by the file's usual name; None for others."""
    file = Path(model.lora or "")
    if file.name not in PUBLIC_LORAS:
        return None
    return HubFiles(PUBLIC_LORAS[file.name], "file", "lora", inside=file.name, place=file)
