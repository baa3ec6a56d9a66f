"""A mixture of three Gaussians (Eq. 12): G1 and G3 are a biased pair, G2 is what no preference speaks of."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from popalign_core.errors import InputError

LOGITS, MEANS, SCALES = (1.0, 0.0, -1.0), (-7.0, 0.0, 7.0), (1.0, 1.0, 1.0)
EDGES = (-3.5, 3.5)
"""Where G1 ends and G3 begins: half way between the means of the reference."""


@dataclass(frozen=True)
class Mixture:
    """Parameters of `p(x) = sum_k softmax(logits)_k N(x; means_k, exp(log_scales_k)^2)`, each [3] float64."""

    logits: Tensor
    means: Tensor
    log_scales: Tensor

    def parameters(self) -> list[Tensor]:
        """All of them."""
        return [self.logits, self.means, self.log_scales]

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), exact: [B] to [B]."""
        z = (x[:, None] - self.means) / self.log_scales.exp()
        components = -0.5 * z.square() - self.log_scales - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(torch.log_softmax(self.logits, 0) + components, dim=1)

    def masses(self) -> tuple[float, float, float]:
        """Mass left of, between and right of the edges; regions, because components may wander."""
        with torch.no_grad():
            edges = torch.tensor(EDGES, dtype=self.means.dtype)
            below = torch.special.ndtr((edges[:, None] - self.means) / self.log_scales.exp())
            low, high = (below * torch.softmax(self.logits, 0)).sum(1).tolist()
        return low, high - low, 1 - high


def reference_mixture() -> Mixture:
    """The reference of Eq. 12, mass (.665, .245, .090)."""
    logits, means, scales = (torch.tensor(values, dtype=torch.float64) for values in (LOGITS, MEANS, SCALES))
    return Mixture(logits, means, scales.log())


def policy() -> Mixture:
    """A trainable copy of the reference."""
    start = reference_mixture()
    return Mixture(*(parameter.clone().requires_grad_(True) for parameter in start.parameters()))


def preference_samples(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Preferred and dispreferred samples, both from G1 and G3 only.

    The preferred ones follow the even target by quota, as the pipeline builds its sets; the dispreferred ones are
    drawn as the reference draws, G1 : G3 = e^2 : 1.

    Args:
        n: Samples a side, even.
        generator: Source of every draw.

    Returns:
        [n] and [n] float64.
    """
    start = reference_mixture()
    even = torch.arange(n) % 2 == 0
    shares = torch.softmax(start.logits[[0, 2]], 0)
    drawn = torch.rand(n, generator=generator, dtype=torch.float64) < shares[0]
    sides = []
    for left in (even, drawn):
        means = torch.where(left, start.means[0], start.means[2])
        sides.append(means + torch.randn(n, generator=generator, dtype=torch.float64))
    return sides[0], sides[1]


def expected_masses(beta: float) -> tuple[float, float, float]:
    """Where Eq. 11 without normaliser ends: logistic density-ratio estimation under the constraint of being a density.

    Unconstrained, the logistic loss is least at `beta * g = log p_w / p_l`, so on G1 and G3 the policy becomes
    `p_ref (p_w / p_l)^(1/beta)`. What these do not use up falls to G2, of which no sample speaks. As `p_l` is `p_ref`
    on G1 and G3, they use what they had exactly at beta = 1: only then G2 stays. A smaller beta asks for more than all
    of it, and G2 vanishes.

    Args:
        beta: At least 1; below, G1 and G3 ask for more mass than there is.

    Returns:
        G1, G2, G3.

    Raises:
        InputError: When the two ask for more than all mass.
    """
    shares = torch.softmax(reference_mixture().logits, 0)
    compared = shares[0] + shares[2]
    lost = shares[[0, 2]] / compared
    asked = (compared * lost * (0.5 / lost) ** (1 / beta)).tolist()
    if sum(asked) > 1:
        raise InputError(
            f"at beta {beta:g} G1 and G3 ask for {sum(asked):.3g} of the mass; there is no interior optimum"
        )
    return asked[0], 1 - sum(asked), asked[1]
