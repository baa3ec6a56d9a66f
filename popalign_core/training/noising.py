"""The forward processes: noise, velocity and flow prediction behind one call."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from popalign_core.config import TrainingConfig
from popalign_core.errors import ConfigError
from popalign_core.sampling.schedulers import level_shift
from popalign_core.training.settings_check import check_timesteps


@dataclass(frozen=True)
class Noised:
    """S noisy samples.

    Attributes:
        noisy_latents: [S, C, h, w] float32.
        target: [S, C, h, w] float32, what the model is to predict.
        timesteps: [S] in the model's own numbers: int64 for diffusion, float32 for flow.
    """

    noisy_latents: Tensor
    target: Tensor
    timesteps: Tensor


class Diffusion:
    """z_t = sqrt(a_t) z + sqrt(1 - a_t) noise; the target is the noise or v = sqrt(a_t) noise - sqrt(1 - a_t) z."""

    def __init__(self, scheduler: Any, *, zero_terminal_snr: bool = False) -> None:
        # whichever sampler the model came with (Euler's own add_noise works in sigma space)
        options = {"rescale_betas_zero_snr": True} if zero_terminal_snr else {}
        self._scheduler = DDPMScheduler.from_config(scheduler.config, **options)
        self._velocity = scheduler.config.prediction_type == "v_prediction"
        self.n_timesteps = int(scheduler.config.num_train_timesteps)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Noised:
        """Timesteps are [S] int64 in [0, n_timesteps)."""
        target = self._scheduler.get_velocity(latents, noise, timesteps) if self._velocity else noise
        return Noised(self._scheduler.add_noise(latents, noise, timesteps), target, timesteps)


class Flow:
    """Rectified flow (Esser et al. 2024, arXiv:2403.03206): z_s = (1 - s) z + s noise, target noise - z.

    The levels s are those of the model's own scheduler, its shift included: a fixed one, or (`use_dynamic_shifting`,
    FLUX.1-dev) the one for latents of this size, just as the sampler has it.
    """

    def __init__(self, scheduler: Any) -> None:
        # from_config: set_timesteps of an earlier use may have shortened the table
        fresh = type(scheduler).from_config(scheduler.config)
        self._scheduler, self._sigmas = fresh, torch.as_tensor(fresh.sigmas, dtype=torch.float32).flip(0)
        self.n_timesteps = int(scheduler.config.num_train_timesteps)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Noised:
        """Timesteps are [S] int64 in [0, n_timesteps), 0 the least noise; the model is told s * n_timesteps."""
        sigmas = self._sigmas[timesteps]
        if self._scheduler.config.use_dynamic_shifting:
            sigmas = self._scheduler.time_shift(level_shift(self._scheduler, *latents.shape[-2:]), 1.0, sigmas)
        level = sigmas[:, None, None, None]
        return Noised((1 - level) * latents + level * noise, noise - latents, sigmas * self.n_timesteps)


ForwardProcess = Diffusion | Flow


def forward_process(scheduler: Any, config: TrainingConfig) -> ForwardProcess:
    """The forward process a model was trained with, read from any diffusers scheduler of it.

    Raises:
        ConfigError: For another prediction type than epsilon, v_prediction or flow, for a flow with
            `zero_terminal_snr`, or when `min_timestep` or `timesteps` reach beyond the model's.
    """
    if "FlowMatch" in type(scheduler).__name__:
        if config.zero_terminal_snr:
            raise ConfigError("training.zero_terminal_snr is for diffusion; a flow begins at pure noise: leave it out")
        process: ForwardProcess = Flow(scheduler)
    elif (kind := scheduler.config.prediction_type) in ("epsilon", "v_prediction"):
        process = Diffusion(scheduler, zero_terminal_snr=config.zero_terminal_snr)
    else:
        raise ConfigError(
            f"prediction type {kind!r} cannot be trained; use a model with epsilon, v_prediction or flow matching"
        )
    check_timesteps(config, process.n_timesteps)
    return process


def draw_timesteps(process: ForwardProcess, config: TrainingConfig, n: int, generator: torch.Generator) -> Tensor:
    """[n] int64: from `config.timesteps`; else uniform or logit-normal from `min_timestep` up."""
    if config.timesteps:
        chosen = torch.randint(len(config.timesteps), (n,), generator=generator)
        return torch.tensor(config.timesteps)[chosen]
    low, high = config.min_timestep, process.n_timesteps
    if config.timestep_sampling == "logit_normal":
        share = torch.sigmoid(torch.randn(n, generator=generator, dtype=torch.float64))
        return (low + share * (high - low)).long().clamp(max=high - 1)
    return torch.randint(low, high, (n,), generator=generator)
