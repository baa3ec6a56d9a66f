"""What must fit together before training starts, and what a checkpoint belongs to."""

import hashlib
from typing import Any

import torch

from popalign_core.config import TrainingConfig
from popalign_core.errors import ConfigError, InputError
from popalign_core.models.denoisers import family_of, latent_channels
from popalign_core.models.float8 import is_float8
from popalign_core.training.data import PreferenceData


def check_inputs(model: Any, data: PreferenceData, config: TrainingConfig) -> None:
    """Refuse data that does not fit the model or the objective.

    Raises:
        InputError: Naming what does not fit.
        ConfigError: When the weights cannot be trained.
    """
    if is_float8(model):
        raise ConfigError("the weights are kept as float8, too coarse to be trained; leave model.storage out")
    channels, (width, *size) = latent_channels(model), data.latents.shape[1:]
    if channels != width:
        raise InputError(
            f"the latents have {width} channels, the model reads {channels}: they come from another model's VAE; "
            "sample with this model again"
        )
    patch = family_of(model).patch
    if any(side % patch for side in size):
        raise InputError(
            f"the latents are {size[0]} x {size[1]}, the model reads patches of {patch} x {patch}: give a "
            "sampling.width and height that such patches fill, and sample again"
        )
    if config.retention > 0 and len(data.retained_latents) == 0:
        raise InputError(
            f"training.retention is {config.retention:g}, but the data holds no retained image; set it to 0"
        )
    if config.uses_anchors and not bool(data.retained_generic.any()):
        raise InputError(
            "training.normaliser is 'anchor', but no image of a generic training prompt was sampled; "
            "give prompts.retained_subjects, or choose batch, ema or zero"
        )
    needed = {"cgm-relax": data.classes, "ratio-matching": data.log_ratios}
    needed |= dict.fromkeys(("population-policy", "dgpo"), data.advantages)
    if needed.get(config.objective, data.latents) is None:
        raise InputError(
            f"training.objective is {config.objective!r}, but the images' classes are unknown; choose another"
        )


def fingerprint(model: Any, data: PreferenceData, config: TrainingConfig) -> str:
    """What a checkpoint belongs to. A sample of the values is enough to tell mistakes, at no cost for large models."""
    digest = hashlib.sha256(config.model_dump_json().encode())
    compared = (data.preferred, data.prompt_index, data.set_index, data.prompt_embeds)
    retained = (data.retained_prompt_index, data.retained_generic)
    latents = [
        part[torch.arange(0, len(part), max(1, len(part) // 64))] for part in (data.latents, data.retained_latents)
    ]
    wanted = (each for each in (data.advantages, data.log_ratios) if each is not None)
    for tensor in (*latents, *compared, *retained, *wanted, *model.parameters()):
        flat = tensor.detach().flatten()
        picked = flat[:: max(1, len(flat) // 256)].float().cpu().numpy().tobytes()
        digest.update(f"{tuple(tensor.shape)}".encode() + picked)
    return digest.hexdigest()
