"""Guidance of diffusion sampling: how strong at which time (constant, Dynamic-CFG, interval), and CADS."""

from collections.abc import Sequence
from typing import overload

import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor

from popalign_core.config import CADSConfig, SamplingConfig
from popalign_core.errors import ConfigError
from popalign_core.ids import image_seed
from popalign_core.models.denoisers import Family
from popalign_core.models.embeddings import PromptEmbeddings


@overload
def annealing_gamma(t: float, tau1: float, tau2: float) -> float: ...
@overload
def annealing_gamma(t: Tensor, tau1: float, tau2: float) -> Tensor: ...
def annealing_gamma(t: float | Tensor, tau1: float, tau2: float) -> float | Tensor:
    """Weight of the condition in CADS and Dynamic-CFG (Sadat et al. 2023, arXiv:2310.17347, Eq. 4).

    Sampling runs from `t = 1` to `t = 0`: the condition is absent early (`t >= tau2`) and whole late (`t <= tau1`).

    Args:
        t: Diffusion time in [0, 1], 1 is pure noise; a number or a tensor of any shape.
        tau1: At and below it gamma is 1; with 1 the condition is never annealed, whatever tau2.
        tau2: At and above it gamma is 0.

    Returns:
        gamma in [0, 1], a number for a number, a tensor of the same shape for a tensor.

    Raises:
        ConfigError: Unless `0 <= tau1 < tau2 <= 1` or `tau1 = 1`.
    """
    if tau1 == 1 and 0 <= tau2 <= 1:
        return torch.ones_like(t) if isinstance(t, Tensor) else 1.0
    if not 0 <= tau1 < tau2 <= 1:
        raise ConfigError(
            f"annealing needs 0 <= tau1 < tau2 <= 1, got tau1={tau1}, tau2={tau2}; typical values are 0.6 and 0.9"
        )
    gamma = (tau2 - t) / (tau2 - tau1)
    if isinstance(gamma, Tensor):
        return gamma.clamp(0.0, 1.0)
    return min(max(gamma, 0.0), 1.0)


def guidance_weight(config: SamplingConfig, t: float, sigma: float) -> float:
    """Weight of classifier-free guidance at one step: 1 follows the condition alone, 0 nothing but the model.

    Dynamic-CFG takes `gamma(t)` times the scale (Sadat et al. 2023, section 4); outside a guidance interval there is
    no guidance (Kynkaanniemi et al. 2024, arXiv:2404.07724, Eq. 5).

    Args:
        config: Scale, interval, annealing.
        t: Diffusion time in [0, 1], 1 is pure noise.
        sigma: Noise level, `schedulers.noise_level`.
    """
    if config.guidance_interval is not None:
        low, high = config.guidance_interval
        if not low < sigma <= high:
            return 1.0
    if config.dynamic_cfg is not None:
        return config.guidance_scale * annealing_gamma(t, config.dynamic_cfg.tau1, config.dynamic_cfg.tau2)
    return config.guidance_scale


def check_guidance(config: SamplingConfig, family: Family) -> None:
    """What `guidance_scale` means depends on the family.

    A guidance-distilled model (FLUX.1-dev) reads it as a number and gives the guided prediction in one forward: there
    are no two halves to weigh, so schedules and rescaling of their weight are refused; CADS goes to the condition and
    stays; so does fair_diffusion, though what it compares is guided already: its scale counts that many times as much.
    For all others (FLUX.1-schnell too, which is made for 1) it is the weight of classifier-free guidance.

    Raises:
        ConfigError: Naming what a guidance-distilled model has no use for.
    """
    of_weight = ("dynamic_cfg", "guidance_interval", "guidance_rescale")
    if family.embeds_guidance and (asked := [f"sampling.{name}" for name in of_weight if getattr(config, name)]):
        raise ConfigError(
            f"{', '.join(asked)} cannot be used with {family.name}: it is distilled from guidance and only told the "
            "guidance_scale; leave it out (cads works)"
        )


def guide(unguided: Tensor, conditional: Tensor, weight: float, rescale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, Eq. 6), rescaled as Lin et al. propose
    (2023, arXiv:2305.08891, section 3.4), with statistics per sample.

    Args:
        unguided: [B, C, h, w] prediction without condition.
        conditional: [B, C, h, w] prediction with it.
        weight: `guidance_weight`.
        rescale: phi, in [0, 1]; 0 leaves the prediction as it is.
    """
    if weight == 1:
        return conditional
    # diffusers' guider classes have no schedules, and each one made warns that it is experimental
    guided: Tensor = unguided + weight * (conditional - unguided)
    return rescale_noise_cfg(guided, conditional, rescale) if rescale else guided


def anneal_condition(condition: Tensor, gamma: float, noise: Tensor, config: CADSConfig) -> Tensor:
    """A condition with noise in its place, as far as gamma is below 1 (CADS, Sadat et al. 2023, Eq. 3 and 5-6).

    Mean and standard deviation are those of one sample: what its neighbours in the batch are must not matter.

    Args:
        condition: [B, ...] y.
        gamma: `annealing_gamma`.
        noise: [B, ...] standard normal, n.
        config: Noise scale s and mixing factor psi.

    Returns:
        [B, ...] `psi y'' + (1 - psi) y'`; the condition itself when gamma is 1.
    """
    if gamma == 1 or condition.numel() == 0:
        return condition
    dims = tuple(range(1, condition.ndim))

    def statistics(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.mean(dims, keepdim=True), values.std(dims, keepdim=True)

    noisy = gamma**0.5 * condition + config.noise_scale * (1 - gamma) ** 0.5 * noise
    (mean, std), (noisy_mean, noisy_std) = statistics(condition), statistics(noisy)
    # without noise gamma = 0 leaves a constant, whose deviation nothing can be divided by
    scale = torch.where(noisy_std > 0, std / noisy_std, 0.0)
    rescaled = (noisy - noisy_mean) * scale + mean
    annealed: Tensor = config.mixing * rescaled + (1 - config.mixing) * noisy
    return annealed


def annealing_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator an image for the noise of CADS, apart from that of its starting noise, which stays the same."""
    return [torch.Generator().manual_seed(image_seed(int(seed), "cads", 0)) for seed in seeds]


def anneal_embeddings(
    embeddings: PromptEmbeddings, gamma: float, generators: Sequence[torch.Generator], config: CADSConfig
) -> PromptEmbeddings:
    """Token states and pooled state of B images, each annealed with statistics of its own.

    Both are: what the pooled state says of the prompt would hold diversity down as much as the tokens.
    """
    if gamma == 1:
        return embeddings
    parts = []
    for part in (embeddings.prompt_embeds, embeddings.pooled_prompt_embeds):
        noise = torch.stack([torch.randn(part.shape[1:], generator=generator) for generator in generators])
        parts.append(anneal_condition(part.float(), gamma, noise.to(part.device), config).to(part.dtype))
    return PromptEmbeddings(*parts)
