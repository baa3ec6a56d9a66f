"""Schedules for the guidance of diffusion sampling."""

from typing import overload

from torch import Tensor

from popalign_core.errors import ConfigError


@overload
def annealing_gamma(t: float, tau1: float, tau2: float) -> float: ...
@overload
def annealing_gamma(t: Tensor, tau1: float, tau2: float) -> Tensor: ...
def annealing_gamma(t: float | Tensor, tau1: float, tau2: float) -> float | Tensor:
    """Weight of the condition in CADS and Dynamic-CFG (Sadat et al. 2023, arXiv:2310.17347, Eq. 4).

    Sampling runs from `t = 1` to `t = 0`: the condition is absent early (`t >= tau2`) and whole late (`t <= tau1`).

    Args:
        t: Diffusion time in [0, 1], 1 is pure noise; a number or a tensor of any shape.
        tau1: At and below it gamma is 1.
        tau2: At and above it gamma is 0.

    Returns:
        gamma in [0, 1], a number for a number, a tensor of the same shape for a tensor.

    Raises:
        ConfigError: Unless `0 <= tau1 < tau2 <= 1`.
    """
    if not 0 <= tau1 < tau2 <= 1:
        raise ConfigError(f"annealing needs 0 <= tau1 < tau2 <= 1, got tau1={tau1}, tau2={tau2}; usual are 0.6 and 0.9")
    gamma = (tau2 - t) / (tau2 - tau1)
    if isinstance(gamma, Tensor):
        return gamma.clamp(0.0, 1.0)
    return min(max(gamma, 0.0), 1.0)
