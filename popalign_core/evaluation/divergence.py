"""Other ways than the discrepancy to say how far shares are from a target; all 0 at the target but `evenness`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def kl_divergence(shares: ArrayLike, target: ArrayLike) -> FloatArray:
    """`KL(shares || target)` in nats.

    Args:
        shares: `[..., K]`; a class below 0 counts as 0.
        target: `[K]`.

    Returns:
        `[...]`; infinite where a class occurs whose target is 0.
    """
    p = np.maximum(np.asarray(shares, dtype=np.float64), 0.0)
    goal = np.broadcast_to(np.asarray(target, dtype=np.float64), p.shape)
    with np.errstate(divide="ignore"):
        logs = np.log(np.where(p > 0, p, 1.0)) - np.where(p > 0, np.log(goal), 0.0)
    divergence: FloatArray = np.where(p > 0, p * logs, p).sum(axis=-1)  # NaN stays NaN
    return divergence


def evenness(shares: ArrayLike) -> FloatArray:
    """Entropy over `log K`: 1 when all K classes are equally frequent, 0 when there is only one, whatever the target.

    Args:
        shares: `[..., K]`; a class below 0 counts as 0.
    """
    p = np.maximum(np.asarray(shares, dtype=np.float64), 0.0)
    logs = np.log(np.where(p > 0, p, 1.0))
    entropy: FloatArray = -(p * logs).sum(axis=-1) / np.log(p.shape[-1])
    return entropy


def parity_gap(shares: ArrayLike, target: ArrayLike) -> FloatArray:
    """The largest excess of a class over its target less the least, `[..., K]` to `[...]`.

    Under a uniform target it is the largest share less the least, demographic parity's difference.
    """
    excess = np.asarray(shares, dtype=np.float64) - np.asarray(target, dtype=np.float64)
    gap: FloatArray = excess.max(axis=-1) - excess.min(axis=-1)
    return gap


def pairwise_bias(shares: ArrayLike, target: ArrayLike) -> FloatArray:
    """Bias of finetune-fair-diffusion (Shen et al., ICLR 2024, arXiv:2311.07604), `[..., K]` to `[...]`.

    The mean of `|p_i - p_j|` over the pairs of classes; for another target than the uniform, of the excesses over it.
    """
    excess = np.asarray(shares, dtype=np.float64) - np.asarray(target, dtype=np.float64)
    k = excess.shape[-1]
    # of sorted values, the i-th is the larger of i pairs and the smaller of k - 1 - i
    weights = 2.0 * np.arange(k) - (k - 1)
    bias: FloatArray = (np.sort(excess, axis=-1) @ weights) / (k * (k - 1) / 2)
    return bias
