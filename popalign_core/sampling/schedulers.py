"""Samplers by name, on the noise schedule of a model's own scheduler; diffusion time and noise level of a step."""

import warnings
from threading import Lock
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

from popalign_core.config import SamplingConfig
from popalign_core.errors import ConfigError
from popalign_core.models.denoisers import FLOW_PATCH, Family

# Euler and DPM-Solver configs carry no clip_sample, and the default of DDIM and LCM would clip latents to [-1, 1].
_SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler-ancestral": (EulerAncestralDiscreteScheduler, {}),
    "lcm": (LCMScheduler, {"clip_sample": False}),
}

_filtering = Lock()
"""Warnings are filtered for the whole process: threads that sample take turns."""


def make_scheduler(scheduler: Any, name: str, timestep_spacing: str | None = None) -> Any:
    """A fresh sampler on the noise schedule and prediction type of a model's own scheduler.

    Args:
        scheduler: The model's own.
        name: One of `SamplingConfig.scheduler`.
        timestep_spacing: "leading", "trailing" or "linspace"; None keeps the model's own.

    Raises:
        ConfigError: For a flow model with another sampler than Euler's, or with a spacing.
    """
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__:
        if name != "euler":
            raise ConfigError(f"sampling.scheduler is {name!r}, but this is a flow model: choose euler")
        if timestep_spacing is not None:
            raise ConfigError(f"sampling.timestep_spacing is {timestep_spacing!r}; a flow model has none: leave it out")
        return FlowMatchEulerDiscreteScheduler.from_config(config)
    kind, options = _SCHEDULERS[name]
    if timestep_spacing is not None:
        options = options | {"timestep_spacing": timestep_spacing}
    return kind.from_config(config, **options)


def start_sampling(scheduler: Any, config: SamplingConfig, family: Family, noise: torch.Tensor) -> torch.Tensor:
    """Set the timesteps and return those to go through: all, or with SDEdit the last `strength` of them.

    Args:
        scheduler: Of `make_scheduler`.
        config: Number of steps, SDEdit.
        family: Of the denoiser.
        noise: [B, C, h, w], whose size and device count.
    """
    options: dict[str, Any] = {}
    if family.even_levels:
        options["sigmas"] = np.linspace(1, 1 / config.n_steps, config.n_steps)
    if scheduler.config.get("use_dynamic_shifting", False):
        options["mu"] = level_shift(scheduler, *noise.shape[-2:])
    with _filtering, warnings.catch_warnings():
        # diffusers hands CPU tensors to numpy 2 in a way that torch's CPU wheel calls deprecated
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler.set_timesteps(config.n_steps, device=noise.device, **options)
    first = 0 if config.sdedit is None else config.n_steps - int(config.n_steps * config.sdedit.strength)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps: torch.Tensor = scheduler.timesteps[first:]
    return timesteps


def level_shift(scheduler: Any, height: int, width: int) -> float:
    """mu: how far a flow scheduler with `use_dynamic_shifting` moves its levels towards noise for latents of a size.

    Linear in the number of tokens (Esser et al. 2024, arXiv:2403.03206, section 5.3.2, say why larger images need
    more noise), through the two points of the scheduler's configuration.
    """
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    n_tokens = height * width // FLOW_PATCH**2
    return float(config.base_shift + slope * (n_tokens - config.base_image_seq_len))


def step_options(scheduler: Any, config: SamplingConfig, generators: list[torch.Generator]) -> dict[str, Any]:
    """What a sampler that draws noise as it goes is stepped with: one generator an image."""
    if isinstance(scheduler, DDIMScheduler):
        return {"eta": config.eta, "generator": generators} if config.eta else {}
    if isinstance(scheduler, EulerAncestralDiscreteScheduler | LCMScheduler):
        return {"generator": generators}
    return {}


def diffusion_time(scheduler: Any, timestep: torch.Tensor) -> float:
    """A timestep as a time in [0, 1]; 1 is pure noise."""
    return float(timestep) / float(scheduler.config.num_train_timesteps)


def noise_level(scheduler: Any, timestep: torch.Tensor) -> float:
    """Standard deviation of the noise over that of the image at a timestep: sigma of Karras et al. 2022.

    Of a variance-preserving schedule `sqrt((1 - abar) / abar)`, of a flow `s / (1 - s)`.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        flow = diffusion_time(scheduler, timestep)
        return flow / (1 - flow) if flow < 1 else float("inf")
    kept = np.asarray(scheduler.alphas_cumprod.cpu(), dtype=np.float64)
    share = float(np.interp(float(timestep), np.arange(len(kept)), kept))
    return float(np.sqrt((1 - share) / share)) if share > 0 else float("inf")
