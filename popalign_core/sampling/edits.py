"""Semantic guidance (SEGA, Brack et al. 2023, arXiv:2301.12247): steering an image by concepts besides its prompt.

Fair Diffusion (Friedrich et al. 2023, arXiv:2302.10893) steers with it towards an identity drawn for each image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popalign_core.config import FairDiffusionConfig
from popalign_core.errors import InputError
from popalign_core.models.embeddings import PromptEmbeddings


@dataclass(frozen=True)
class Edits:
    """By which concepts each image of a batch is steered.

    Attributes:
        concepts: Embeddings of all concepts.
        index: [B, E] rows of `concepts`.
        direction: [B, E] +1 towards the concept, -1 away from it, 0 where an image has fewer than E.
    """

    concepts: PromptEmbeddings
    index: Tensor
    direction: Tensor

    def __post_init__(self) -> None:
        if self.index.shape != self.direction.shape or self.index.ndim != 2:
            shapes = tuple(self.index.shape), tuple(self.direction.shape)
            raise InputError(f"edits need [B, E] rows and directions alike, got {shapes[0]} and {shapes[1]}")

    def rows(self, images: slice | Sequence[int]) -> "Edits":
        """Those of some images."""
        return Edits(self.concepts, self.index[images], self.direction[images])

    def columns(self) -> list[PromptEmbeddings]:
        """The embeddings of each of the E edits, of B images each."""
        return [self.concepts.rows(self.index[:, edit]) for edit in range(self.index.shape[1])]


class SemanticGuidance:
    """The term that edits add to the guided prediction, step by step; it has momentum."""

    def __init__(self, direction: Tensor, config: FairDiffusionConfig, n_steps: int) -> None:
        """Start a batch.

        Args:
            direction: [B, E], of `Edits`.
            config: Scale, threshold, warm-up and momentum.
            n_steps: The sampler's.
        """
        self._direction = direction[:, :, None, None, None]
        self._config = config
        self._n_warmup = round(config.warmup * n_steps)
        self._momentum: Tensor | None = None

    def __call__(self, concepts: Tensor, unguided: Tensor, step: int) -> Tensor:
        """SEGA's gamma with momentum (Eq. 3-8); 0 while it warms up, though momentum gathers.

        Args:
            concepts: [B, E, C, h, w] predictions under the concepts.
            unguided: [B, C, h, w] prediction without condition.
            step: Number of the step, from 0.

        Returns:
            [B, C, h, w], to be added to the guided prediction.
        """
        psi = self._config.scale * self._direction * (concepts - unguided[:, None])
        # quantile wants float32; of each channel, as the authors' implementation has it
        border = psi.abs().flatten(3).quantile(self._config.threshold, dim=3)[..., None, None]
        term = torch.where(psi.abs() >= border, psi, 0.0).sum(1)
        if self._momentum is None:
            self._momentum = torch.zeros_like(term)
        term = term + self._config.momentum_scale * self._momentum
        self._momentum = self._config.momentum_beta * self._momentum + (1 - self._config.momentum_beta) * term
        return term if step >= self._n_warmup else torch.zeros_like(term)
