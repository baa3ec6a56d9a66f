"""The samples of a training step: everything random of it, from (seed, step) alone."""

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from popalign_core.config import TrainingConfig
from popalign_core.models.denoisers import Conditions
from popalign_core.training.data import PreferenceData, draw_groups, draw_pairs, draw_retained
from popalign_core.training.noising import ForwardProcess, draw_timesteps


@dataclass(frozen=True)
class Batch:
    """S samples of n pairs in blocks of n: M = 2n that are compared, n preferred and then their n dispreferred partners
    (SFT: M = n, the preferred alone; with advantages one half of each prompt's images and then the other); then, where
    they are needed, n retained images under their own captions.

    Attributes:
        noisy_latents: [S, C, h, w] float32; the two of a pair, or all images of a prompt, share noise and timestep.
        timesteps: [S], in the model's own numbers.
        target: [S, C, h, w] float32: noise, velocity or flow.
        prompt_embeds: [S, L, D]; the empty caption where the pair's was dropped.
        pooled_prompt_embeds: [S, D2].
        time_ids: [S, 6].
        guidance: [S], the guidance scale that models distilled from guidance are told.
        preferred: [M] bool.
        set_index: [M] int64, the pair of sets, or the group, of each compared sample.
        bins: [M] int64, range of timesteps, of `normaliser_bins`.
        classes: [M] int64; empty unless the objective calibrates.
        priors: [M] float32, the reference's share of that class; empty likewise.
        wanted: [M] float32, advantages or log-ratios; empty unless the objective reads them.
        generic: [S - M] bool, which retained images are of generic prompts; empty without retained images.
        n_pairs: n.
    """

    noisy_latents: Tensor
    timesteps: Tensor
    target: Tensor
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    time_ids: Tensor
    guidance: Tensor
    preferred: Tensor
    set_index: Tensor
    bins: Tensor
    classes: Tensor
    priors: Tensor
    wanted: Tensor
    generic: Tensor
    n_pairs: int

    @property
    def conditions(self) -> Conditions:
        """What the denoiser reads besides noisy latents and timesteps."""
        return Conditions(self.prompt_embeds, self.pooled_prompt_embeds, self.time_ids, self.guidance)

    def part(self, number: int, n_parts: int) -> "Batch":
        """Pairs of the given part of n_parts equal ones, every block cut alike."""
        size = self.n_pairs // n_parts
        rows = slice(number * size, (number + 1) * size)
        cut = {
            name: tensor.unflatten(0, (-1, self.n_pairs))[:, rows].flatten(0, 1) if len(tensor) else tensor
            for name, tensor in self._tensors().items()
        }
        return replace(self, **cut, n_pairs=size)

    def to(self, device: torch.device) -> "Batch":
        """All tensors on a device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "n_pairs"}


def needs_retained(config: TrainingConfig) -> bool:
    """Whether a batch carries retained images: to hold them, or as anchors of the normaliser."""
    return config.retention > 0 or config.uses_anchors


def draw_batch(
    data: PreferenceData, process: ForwardProcess, config: TrainingConfig, time_ids: Tensor, step: int
) -> Batch:
    """Everything random of a step, for all processes together, from a CPU generator of (seed, step) only."""
    digest = hashlib.sha256(f"train/{config.seed}/{step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    n = config.n_pairs
    draw, n_alike = (draw_groups, config.pairs_per_set) if config.has_advantages else (draw_pairs, 1)
    preferred, dispreferred = draw(data, n, generator, pairs_per_set=config.pairs_per_set)
    noise, timesteps = _draw_noise(data, process, config, n // n_alike, generator)
    dropped = torch.rand(n // n_alike, generator=generator) < config.empty_caption_rate
    noise, timesteps, dropped = (each.repeat_interleave(n_alike, 0) for each in (noise, timesteps, dropped))
    rows = preferred if config.objective == "sft" else torch.cat([preferred, dispreferred])
    n_compared = len(rows)
    n_sides = n_compared // n
    noise, timesteps, dropped = noise.repeat(n_sides, 1, 1, 1), timesteps.repeat(n_sides), dropped.repeat(n_sides)
    bins = timesteps * config.normaliser_bins // process.n_timesteps
    latents, prompts = data.latents[rows], data.prompt_index[rows]
    generic = torch.zeros(0, dtype=torch.bool)
    if needs_retained(config):
        retained = draw_retained(data, n, generator)
        generic = data.retained_generic[retained]
        latents = torch.cat([latents, data.retained_latents[retained]])
        prompts = torch.cat([prompts, data.retained_prompt_index[retained]])
        # the preferred samples' noise and timesteps once more; where a prompt's images share them, fresh ones
        fresh = noise[:n], timesteps[:n]
        if config.has_advantages:
            fresh = _draw_noise(data, process, config, n, generator)
        noise, timesteps = torch.cat([noise, fresh[0]]), torch.cat([timesteps, fresh[1]])
        dropped = torch.cat([dropped, torch.zeros(n, dtype=torch.bool)])
    classes, priors = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    if config.objective == "cgm-relax" and data.classes is not None:
        classes, priors = data.classes[rows], data.class_priors[rows]
    wanted = data.advantages if config.has_advantages else data.log_ratios
    noised = process.add_noise(latents, noise, timesteps)
    return Batch(
        noisy_latents=noised.noisy_latents,
        timesteps=noised.timesteps,
        target=noised.target,
        prompt_embeds=torch.where(dropped[:, None, None], data.empty_prompt_embeds, data.prompt_embeds[prompts]),
        pooled_prompt_embeds=torch.where(dropped[:, None], data.empty_pooled, data.pooled_prompt_embeds[prompts]),
        time_ids=time_ids.expand(len(latents), -1),
        guidance=torch.full((len(latents),), data.guidance_scale),
        preferred=torch.arange(n_compared) < n,
        set_index=data.set_index[rows],
        bins=bins,
        classes=classes,
        priors=priors,
        wanted=torch.zeros(0) if wanted is None else wanted[rows],
        generic=generic,
        n_pairs=n,
    )


def _draw_noise(
    data: PreferenceData, process: ForwardProcess, config: TrainingConfig, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise [n, C, h, w] and timesteps [n]."""
    noise = torch.randn((n, *data.latents.shape[1:]), generator=generator)
    return noise, draw_timesteps(process, config, n, generator)
