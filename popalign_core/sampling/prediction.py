"""The prediction of one step: which forwards it takes, and how guidance puts them together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from popalign_core.config import SamplingConfig
from popalign_core.models.denoisers import Conditions, family_of, predict
from popalign_core.models.embeddings import PromptEmbeddings, concatenate
from popalign_core.sampling.edits import Edits, SemanticGuidance
from popalign_core.sampling.guidance import (
    anneal_embeddings,
    annealing_gamma,
    annealing_generators,
    check_guidance,
    guidance_weight,
    guide,
)
from popalign_core.sampling.reuse import FeatureReuse
from popalign_core.sampling.schedulers import diffusion_time, noise_level


@dataclass(frozen=True)
class Captions:
    """What B images are sampled for.

    Attributes:
        embeddings: Of the distinct prompts.
        index: [B] rows of `embeddings`.
        unconditional: One, of the empty prompt.
        edits: Concepts the images are steered by; None for none.
        start_latents: [B, C, h, w] of the images that SDEdit starts from, in the denoiser's space; None for noise.
    """

    embeddings: PromptEmbeddings
    index: Sequence[int]
    unconditional: PromptEmbeddings
    edits: Edits | None = None
    start_latents: Tensor | None = None

    def part(self, images: slice) -> "Captions":
        """Those of some of the images."""
        return replace(
            self,
            index=self.index[images],
            edits=self.edits and self.edits.rows(images),
            start_latents=None if self.start_latents is None else self.start_latents[images],
        )


class Predictor:
    """A denoiser with everything that is the same at each step of a batch."""

    def __init__(
        self,
        denoiser: Any,
        scheduler: Any,
        captions: Captions,
        seeds: Sequence[int],
        time_ids: Tensor,
        config: SamplingConfig,
        device: torch.device,
    ) -> None:
        """Bring the captions to the device.

        Args:
            denoiser: UNet or transformer.
            scheduler: With its timesteps set.
            captions: Of B images.
            seeds: [B], for the noise of CADS.
            time_ids: [1, 6], SDXL's sizes.
            config: Guidance, and how often the whole denoiser runs.
            device: Where the denoiser computes.

        Raises:
            ConfigError: As `check_guidance`; when features of this denoiser cannot be reused, but are to be.
        """
        self._denoiser, self._scheduler, self._config = denoiser, scheduler, config
        self._family, self._place = family_of(denoiser), (device, denoiser.dtype)
        check_guidance(config, self._family)
        self._time_ids = time_ids.to(*self._place)
        self._conditional = captions.embeddings.rows(captions.index).to(*self._place)
        self._unconditional = captions.unconditional.to(*self._place).expand(len(seeds))
        self._reuse = FeatureReuse(denoiser, config.reuse_interval) if config.reuse_interval > 1 else None
        self._annealing = annealing_generators(seeds) if config.cads else []
        self._concepts: dict[str, PromptEmbeddings] = {}
        self._steer: SemanticGuidance | None = None
        if captions.edits is not None and config.fair_diffusion is not None and captions.edits.direction.any():
            columns = enumerate(captions.edits.columns())
            self._concepts = {f"concept {number}": part.to(*self._place) for number, part in columns}
            self._steer = SemanticGuidance(captions.edits.direction.to(device), config.fair_diffusion, config.n_steps)

    def __call__(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """The guided prediction [B, C, h, w] for latents [B, C, h, w] at one timestep, the `step`th from 0.

        Both halves of the guidance are one forward. A half that does not count is not taken: the unconditional one
        where the guidance weight is 1, the conditional one where it is 0. The weight of a guidance-distilled model is
        always 1: it is told the guidance scale in the conditional forward, whose prediction is guided already.
        """
        time = diffusion_time(self._scheduler, timestep)
        weight = 1.0
        if not self._family.embeds_guidance:
            weight = guidance_weight(self._config, time, noise_level(self._scheduler, timestep))
        parts = {"unconditional": self._unconditional} if weight != 1 or self._steer is not None else {}
        if weight != 0:
            parts["conditional"] = self._condition(time)
        predictions = self._forward(latents, timestep, step, parts)
        unguided, model_pred = predictions[0], predictions[-1]
        if len(parts) == 2:
            model_pred = guide(unguided, model_pred, weight, self._config.guidance_rescale)
        if self._steer is not None:
            # a forward of their own: a batch of all parts at once would need twice the memory and more
            concepts = torch.stack(self._forward(latents, timestep, step, self._concepts), 1)
            model_pred = model_pred + self._steer(concepts, unguided, step)
        return model_pred

    def _condition(self, time: float) -> PromptEmbeddings:
        if self._config.cads is None:
            return self._conditional
        gamma = annealing_gamma(time, self._config.cads.tau1, self._config.cads.tau2)
        return anneal_embeddings(self._conditional, gamma, self._annealing, self._config.cads)

    def _forward(
        self, latents: Tensor, timestep: Tensor, step: int, parts: Mapping[str, PromptEmbeddings]
    ) -> tuple[Tensor, ...]:
        """One forward for all parts: their predictions, float32."""
        noisy = torch.cat([latents] * len(parts))
        if hasattr(self._scheduler, "scale_model_input"):
            noisy = self._scheduler.scale_model_input(noisy, timestep)
        captions = concatenate(list(parts.values()))
        sizes = self._time_ids.expand(len(noisy), -1)
        guidance = latents.new_full((len(noisy),), self._config.guidance_scale)
        conditions = Conditions(captions.prompt_embeds, captions.pooled_prompt_embeds, sizes, guidance)
        times = timestep.expand(len(noisy))
        denoiser = self._reuse.denoiser(step, tuple(parts)) if self._reuse else self._denoiser
        model_pred = predict(denoiser, self._family, noisy.to(self._denoiser.dtype), times, conditions)
        return model_pred.float().chunk(len(parts))
