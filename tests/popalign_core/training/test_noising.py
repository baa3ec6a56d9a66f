"""The forward processes against their equations, and which timesteps are drawn."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from pydantic import ValidationError
from torch import Tensor

from popalign_core.config import TrainingConfig
from popalign_core.errors import ConfigError
from popalign_core.training.noising import Diffusion, Flow, draw_timesteps, forward_process

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TURBO = (249, 499, 749, 999)
TIMESTEPS = torch.tensor([0, 499, 999])


def draw_samples() -> tuple[Tensor, Tensor]:
    """Latents and noise, [3, 2, 4, 4]."""
    latents, noise = torch.randn((2, 3, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    return latents, noise


def signal_and_noise() -> tuple[Tensor, Tensor]:
    """sqrt(a_t) and sqrt(1 - a_t) of `TIMESTEPS`, from the definition: a_t is the product of 1 - beta up to t."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[TIMESTEPS].float().view(3, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()


@pytest.mark.parametrize(
    "scheduler_class", [DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, PNDMScheduler]
)
def test_noise_prediction(scheduler_class: Any) -> None:
    scheduler = scheduler_class(**BETAS, prediction_type="epsilon")
    scheduler.set_timesteps(4)  # an earlier use as a sampler
    latents, noise = draw_samples()
    process = forward_process(scheduler, TrainingConfig())
    noised = process.add_noise(latents, noise, TIMESTEPS)
    signal, level = signal_and_noise()
    torch.testing.assert_close(noised.noisy_latents, signal * latents + level * noise, rtol=0, atol=1e-5)
    assert torch.equal(noised.target, noise)
    assert torch.equal(noised.timesteps, TIMESTEPS)
    assert process.n_timesteps == 1000


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler])
def test_zero_terminal_snr(scheduler_class: Any) -> None:
    """Lin et al. 2023, algorithm 1: sqrt(a) is shifted to 0 at the end and scaled to stay the same at the beginning."""
    latents, noise = draw_samples()
    asked = forward_process(scheduler_class(**BETAS), TrainingConfig(zero_terminal_snr=True))
    models_own = scheduler_class(**BETAS, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    own = forward_process(models_own, TrainingConfig())
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = (1 - betas).cumprod(0).sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    signal, level = (part[TIMESTEPS].float().view(3, 1, 1, 1) for part in (signal, (1 - signal**2).sqrt()))
    for process in (asked, own):
        found = process.add_noise(latents, noise, TIMESTEPS).noisy_latents
        torch.testing.assert_close(found, signal * latents + level * noise, rtol=0, atol=1e-4)
        assert torch.equal(found[2], noise[2])
    # at the end the velocity is what the noise hides: -z
    torch.testing.assert_close(own.add_noise(latents, noise, TIMESTEPS).target[2], -latents[2])


def test_a_flow_has_no_terminal_snr_to_set() -> None:
    with pytest.raises(ConfigError, match="zero_terminal_snr is for diffusion"):
        forward_process(FlowMatchEulerDiscreteScheduler(shift=3.0), TrainingConfig(zero_terminal_snr=True))


def test_velocity_prediction() -> None:
    latents, noise = draw_samples()
    process = forward_process(DDIMScheduler(**BETAS, prediction_type="v_prediction"), TrainingConfig())
    noised = process.add_noise(latents, noise, TIMESTEPS)
    signal, level = signal_and_noise()
    torch.testing.assert_close(noised.noisy_latents, signal * latents + level * noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(noised.target, signal * noise - level * latents, rtol=0, atol=1e-5)
    # what v is for: with z_t it gives back the latents and the noise
    torch.testing.assert_close(signal * noised.noisy_latents - level * noised.target, latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(level * noised.noisy_latents + signal * noised.target, noise, rtol=0, atol=1e-5)


def test_flow_by_hand() -> None:
    latents, noise = draw_samples()
    process = forward_process(FlowMatchEulerDiscreteScheduler(shift=3.0), TrainingConfig())
    noised = process.add_noise(latents, noise, TIMESTEPS)
    # timestep t is the level u = (t + 1) / 1000, shifted to s = 3u / (1 + 2u): .001 -> .003 / 1.002, .5 -> .75, 1 -> 1
    s = torch.tensor([0.003 / 1.002, 0.75, 1.0])
    torch.testing.assert_close(noised.timesteps, 1000 * s, rtol=1e-6, atol=0)
    level = s.view(3, 1, 1, 1)
    torch.testing.assert_close(noised.noisy_latents, (1 - level) * latents + level * noise, rtol=0, atol=1e-6)
    assert torch.equal(noised.target, noise - latents)
    assert torch.equal(noised.noisy_latents[2], noise[2])
    # following the flow back over s gives the latents
    torch.testing.assert_close(noised.noisy_latents - level * noised.target, latents, rtol=0, atol=1e-6)


def test_flow_equals_the_schedulers_own() -> None:
    latents, noise = (part.repeat(334, 1, 1, 1)[:1000] for part in draw_samples())
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    process = forward_process(scheduler, TrainingConfig())
    noised = process.add_noise(latents, noise, torch.arange(1000))
    assert torch.equal(noised.timesteps.flip(0), scheduler.timesteps)
    expected = scheduler.scale_noise(latents, noised.timesteps, noise)
    torch.testing.assert_close(noised.noisy_latents, expected, rtol=0, atol=1e-6)
    # a sampler's shortened table is not the model's
    scheduler.set_timesteps(4)
    again = forward_process(scheduler, TrainingConfig()).add_noise(latents, noise, torch.arange(1000))
    assert torch.equal(again.noisy_latents, noised.noisy_latents)


@pytest.mark.parametrize("size", [(8, 12), (32, 32), (128, 96)])
def test_a_flow_that_shifts_by_size_is_noised_as_the_sampler_would(size: tuple[int, int]) -> None:
    """With the levels of the stock pipeline for these latents: its 1000 steps are all timesteps there are."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    n_tokens = size[0] * size[1] // 4
    stock = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    stock.set_timesteps(sigmas=np.linspace(1, 1 / 1000, 1000), mu=calculate_shift(n_tokens))
    latents, noise = torch.randn((2, 3, 2, *size), generator=torch.Generator().manual_seed(0))
    noised = forward_process(scheduler, TrainingConfig()).add_noise(latents, noise, TIMESTEPS)
    torch.testing.assert_close(noised.timesteps, stock.timesteps.flip(0)[TIMESTEPS], rtol=1e-5, atol=0)
    level = (noised.timesteps / 1000).view(3, 1, 1, 1)
    torch.testing.assert_close(noised.noisy_latents, (1 - level) * latents + level * noise, rtol=0, atol=1e-6)
    assert torch.equal(noised.target, noise - latents)
    assert torch.equal(noised.noisy_latents[2], noise[2])


def test_the_scheduler_decides_the_process() -> None:
    assert type(forward_process(FlowMatchEulerDiscreteScheduler(), TrainingConfig())) is Flow
    assert type(forward_process(PNDMScheduler(), TrainingConfig())) is Diffusion
    with pytest.raises(ConfigError, match="prediction type 'sample' cannot be trained"):
        forward_process(DDIMScheduler(prediction_type="sample"), TrainingConfig())


def test_few_step_models_draw_their_timesteps_only() -> None:
    config = TrainingConfig(timesteps=TURBO)
    process = forward_process(EulerAncestralDiscreteScheduler(**BETAS), config)
    drawn = draw_timesteps(process, config, 4000, torch.Generator().manual_seed(0))
    values, counts = drawn.unique(return_counts=True)
    assert tuple(values.tolist()) == TURBO
    # 1000 each, within four standard deviations: sqrt(4000 x 1/4 x 3/4) = 27
    assert int((counts - 1000).abs().max()) < 110


def test_min_timestep_is_a_floor() -> None:
    config = TrainingConfig(min_timestep=990)
    process = forward_process(DDIMScheduler(**BETAS), config)
    drawn = draw_timesteps(process, config, 1000, torch.Generator().manual_seed(0))
    assert drawn.unique().tolist() == list(range(990, 1000))


@pytest.mark.parametrize("more", [{"min_timestep": 1}, {"timestep_sampling": "logit_normal"}])
def test_timesteps_exclude_other_ways_of_drawing(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"timesteps \(249, 499, 749, 999\) are the only ones drawn"):
        TrainingConfig.model_validate({"timesteps": TURBO, **more})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainingConfig(timesteps=(249, 1000)), r"training\.timesteps reaches 1000, the model has .* 0 to 999"),
        (TrainingConfig(min_timestep=1200), r"training\.min_timestep reaches 1200, the model has .* 0 to 999"),
    ],
)
@pytest.mark.parametrize("scheduler_class", [EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler])
def test_timesteps_beyond_the_models_are_named(config: TrainingConfig, message: str, scheduler_class: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        forward_process(scheduler_class(), config)
