"""From the classes of images to what population training wants of each: advantages, and log-ratios to the target.

Arrays `classes` are [n, A] int64: the class of each image on each of A axes, -1 where none could be read; `targets` are
the wanted shares, [K] an axis. Everything is a function of counts: the order of the images has no say, and no number
depends on another prompt's images.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from popalign_core.config import Axis, PopulationConfig
from popalign_core.evaluation.fairness import discrepancy

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

UNREAD = -1
"""In place of a class that could not be read."""
_LEAST_SHARE = 1e-3
"""Stands for a target of 0 within a logarithm: far below any share that a round can show."""
_MAX_SWEEPS = 1000


def smoothed_shares(cells: IntArray, n_cells: int, smoothing: float) -> FloatArray:
    """`(n_k + s) / (n + s K)`, [K]: never 0, whatever was seen; images of cell -1 are left out."""
    counts = np.bincount(cells[cells >= 0], minlength=n_cells) + smoothing
    shares: FloatArray = counts / counts.sum()
    return shares


def leave_one_out_advantages(cells: IntArray, target: FloatArray) -> FloatArray:
    """`A_i = -(onehot(k_i) - pi) . (p_{-i} - pi)`, p_{-i} the shares among the *other* images of the prompt.

    Twice this is an unbiased estimate of the gradient signal of `-||p - pi||^2`. As p_{-i} does not know image i, its
    expectation is 0 at the target, for every class by itself: noise pulls nowhere. Hence no division by a standard
    deviation, which at the target would blow that noise up (as in GRPO, arXiv:2402.03300).

    Args:
        cells: [n] int64, the images of one prompt; -1 is not counted and gets 0.
        target: [K] float64, pi.

    Returns:
        [n] float64 in [-2, 2]; 0 where no other image was read.
    """
    read = cells >= 0
    n, advantages = int(read.sum()), np.zeros(len(cells))
    if n < 2:
        return advantages
    own = np.eye(len(target))[cells[read]]
    others = (own.sum(axis=0) - own) / (n - 1)
    advantages[read] = -((own - target) * (others - target)).sum(axis=1)
    return advantages


def log_ratio_advantages(cells: IntArray, target: FloatArray, *, clip: float, smoothing: float) -> FloatArray:
    """`clip(log(pi_k / p_k) - group mean, +-clip)` with smoothed shares p: how much too rare an image's class is.

    To policy gradients `log(pi_k / p_k)` is the reward whose expected gradient is that of `-KL(p || pi)`, the group's
    mean a baseline. A class that nobody wants counts as one with a target of 0.001.

    Args:
        cells: [n] int64, the images of one prompt; -1 is not counted and gets 0.
        target: [K] float64, pi.
        clip: Of the difference, both ways.
        smoothing: Images added to each class.

    Returns:
        [n] float64.
    """
    read, advantages = cells >= 0, np.zeros(len(cells))
    if read.any():
        wanted = np.log(np.maximum(target, _LEAST_SHARE) / smoothed_shares(cells, len(target), smoothing))
        own = wanted[cells[read]]
        advantages[read] = np.clip(own - own.mean(), -clip, clip)
    return advantages


def population_advantages(classes: IntArray, targets: Sequence[FloatArray], settings: PopulationConfig) -> FloatArray:
    """The advantage of each image among those that the policy sampled for its prompt: the mean over what is wanted.

    Args:
        classes: [n, A] of one prompt.
        targets: Shares of each axis.
        settings: Which advantage, of the axes one by one or of their products.

    Returns:
        [n] float64. An image without any class has `settings.faceless`, whatever the others are; an axis on which an
        image could not be read adds 0.
    """
    parts = []
    for cells, target in _populations(classes, targets, settings):
        if settings.advantage == "leave-one-out":
            parts.append(leave_one_out_advantages(cells, target))
        else:
            parts.append(
                log_ratio_advantages(cells, target, clip=settings.clip, smoothing=settings.smoothing),
            )
    mean: FloatArray = np.mean(parts, axis=0)
    advantages: FloatArray = np.where((classes == UNREAD).all(axis=1), settings.faceless, mean)
    return advantages


def advantages_by_prompt(
    classes: IntArray, prompts: IntArray, targets: Sequence[FloatArray], settings: PopulationConfig
) -> FloatArray:
    """`population_advantages` within each prompt: [n] float64 for [n, A] classes and [n] prompts, any numbers."""
    advantages = np.zeros(len(classes))
    for prompt in np.unique(prompts):
        rows = prompts == prompt
        advantages[rows] = population_advantages(classes[rows], targets, settings)
    return advantages


def nearest_shares(base: FloatArray, targets: Sequence[FloatArray]) -> FloatArray:
    """The joint shares nearest to the base's, in KL, that have the wanted marginals (iterative proportional fitting).

    They are `base * exp(sum of a number for each class of each axis)`: what the convex dual of calibration by marginals
    finds (CGM, arXiv:2510.10020), here by scaling one axis after the other.

    Args:
        base: [K_1, .., K_A] float64, all above 0.
        targets: [K_a] an axis.

    Returns:
        [K_1, .., K_A] float64.
    """
    shares = base / base.sum()
    for _ in range(_MAX_SWEEPS):
        before = shares
        for axis, target in enumerate(targets):
            others = tuple(each for each in range(shares.ndim) if each != axis)
            shape = [-1 if each == axis else 1 for each in range(shares.ndim)]
            shares = shares * (target / np.maximum(shares.sum(axis=others), 1e-300)).reshape(shape)
        if np.abs(shares - before).max() < 1e-12:
            break
    return np.asarray(shares, np.float64)


def target_log_ratios(
    classes: IntArray, base: IntArray, targets: Sequence[FloatArray], settings: PopulationConfig
) -> FloatArray:
    """`R = clip(log(pi_k / rho_k))`: log-ratio, to the base, of the nearest model that has the wanted population.

    That model is `p_base * pi_k / rho_k` for an image of class k (the minimum of KL under a constraint on the classes,
    see CGM, arXiv:2510.10020), so that its ratio is known for every stored image. k are products of classes; where the
    axes' marginals alone are wanted, pi are the nearest joint shares that have them.

    Args:
        classes: [n, A] of images of one prompt, whoever sampled them.
        base: [m, A] of images that the base sampled for it, which rho is counted on.
        targets: Shares of each axis.
        settings: Clip, smoothing, joint or marginal.

    Returns:
        [n] float64; -clip for an image that could not be read on every axis.
    """
    sizes = [len(target) for target in targets]
    joint = joint_shares(targets)
    rho = smoothed_shares(joint_cells(base, sizes), joint.size, settings.smoothing).reshape(sizes)
    wanted = joint if settings.target_of == "joint" else nearest_shares(rho, targets)
    ratios = np.log(np.maximum(wanted, 1e-300) / rho).clip(-settings.clip, settings.clip)
    cells = joint_cells(classes, sizes)
    return np.where(cells >= 0, ratios.ravel()[cells], -settings.clip)


def log_ratios_by_prompt(
    classes: IntArray,
    prompts: IntArray,
    is_base: NDArray[np.bool_],
    targets: Sequence[FloatArray],
    settings: PopulationConfig,
) -> FloatArray:
    """`target_log_ratios` within each prompt: [n] float64; `is_base` [n] says which images the base sampled for it."""
    ratios = np.zeros(len(classes))
    for prompt in np.unique(prompts):
        rows = prompts == prompt
        ratios[rows] = target_log_ratios(classes[rows], classes[rows & is_base], targets, settings)
    return ratios


def describe_round(classes: IntArray, prompts: IntArray, axes: Sequence[Axis]) -> dict[str, float]:
    """What the policy sampled in a round, for the log: `round/discrepancy_pooled/AXIS` and `.../discrepancy_per_prompt`
    (Eq. 13, uncorrected; the mean over prompts), and `round/face_share`.

    Args:
        classes: [n, A].
        prompts: [n] any numbers.
        axes: The A axes.
    """
    found: dict[str, float] = {}
    for axis, cells in zip(axes, classes.T, strict=True):
        groups = [cells, *(cells[prompts == prompt] for prompt in np.unique(prompts))]
        counts = [np.bincount(group[group >= 0], minlength=len(axis.classes)) for group in groups]
        # no face at all is as far from any target as possible
        pooled, *each = (discrepancy(row, axis.shares()) if row.sum() else 1.0 for row in counts)
        found |= {
            f"round/discrepancy_pooled/{axis.name}": float(pooled),
            f"round/discrepancy_per_prompt/{axis.name}": float(np.mean(each)),
        }
    return found | {"round/face_share": float(1 - (classes == UNREAD).all(axis=1).mean())}


def _populations(
    classes: IntArray, targets: Sequence[FloatArray], settings: PopulationConfig
) -> Iterator[tuple[IntArray, FloatArray]]:
    """What is to come near its target: each axis by itself, or all products of classes at once."""
    if settings.target_of == "marginal":
        yield from zip(classes.T, targets, strict=True)
    else:
        yield joint_cells(classes, [len(target) for target in targets]), joint_shares(targets).ravel()


def joint_shares(targets: Sequence[FloatArray]) -> FloatArray:
    """[K_1, .., K_A]: the share of each product of classes when the axes are independent."""
    shares: FloatArray = reduce(np.multiply.outer, targets)
    return shares


def joint_cells(classes: IntArray, sizes: Sequence[int]) -> IntArray:
    """[n]: the number of the product of classes; -1 where an axis could not be read."""
    cells: IntArray = np.ravel_multi_index(tuple(np.maximum(classes, 0).T), tuple(sizes))
    return np.where((classes >= 0).all(axis=1), cells, UNREAD)


def class_numbers(seen: Mapping[str, str], axes: Sequence[Axis]) -> list[int]:
    """[A]: the number of an image's class on each axis; -1 where none could be read."""
    return [axis.classes.index(name) if (name := seen.get(axis.name)) in axis.classes else UNREAD for axis in axes]
