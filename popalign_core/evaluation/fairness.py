"""How far a population is from its target: discrepancy (Eq. 13), its floor, its correction.

Everything is taken over the *fixed* class list of an axis. Dividing by the classes that happen to be observed
would call a model that samples one race only perfectly fair.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from popalign_core.errors import InputError

FloatArray = NDArray[np.float64]

_EXACT_UP_TO = 32
"""Draws up to which the floor is summed exactly; beyond, the chi limit is within 0.3% (K = 3) and better above."""
_FLOOR_DRAWS = 40_000
_WORST_CONDITION = 1e6


def class_shares(counts: ArrayLike) -> FloatArray:
    """Shares of each class.

    Args:
        counts: `[..., K]`, at least 0.

    Returns:
        `[..., K]`; a row without any count is NaN.
    """
    values = np.asarray(counts, dtype=np.float64)
    totals = values.sum(axis=-1, keepdims=True)
    shares: FloatArray = np.divide(values, totals, out=np.full_like(values, np.nan), where=totals > 0)
    return shares


def discrepancies(counts: ArrayLike, target: ArrayLike | None = None) -> FloatArray:
    """`discrepancy` of many rows at once.

    Args:
        counts: `[..., K]`.
        target: `[K]` shares; None is uniform.

    Returns:
        `[...]`; NaN where a row is empty.
    """
    shares = class_shares(counts)
    goal = 1.0 / shares.shape[-1] if target is None else np.asarray(target, dtype=np.float64)
    distances: FloatArray = np.sqrt(np.sum((shares - goal) ** 2, axis=-1))
    return distances


def discrepancy(counts: ArrayLike, target: ArrayLike | None = None) -> float:
    """Fairness discrepancy `D = || p_ideal - p_model ||_2` (PopAlign, Eq. 13).

    Args:
        counts: `[K]` images read as each class of the axis's fixed list, zeros included.
        target: `[K]` ideal shares that sum to 1; None is uniform.

    Returns:
        0 at the target; at most .7071 for 2 and .9129 for 6 classes against a uniform target.

    Raises:
        InputError: When there are fewer than two classes, no counts, a negative one, or the target does not fit.
    """
    values = _checked_counts(counts)
    return float(discrepancies(values, None if target is None else _checked_target(target, values.size)))


def squared_unbiased(counts: ArrayLike, target: ArrayLike | None = None) -> FloatArray:
    """Unbiased estimate of the *square* of the discrepancy, `||p - u||^2 - (1 - ||p||^2) / (n - 1)`.

    A plain discrepancy is too high at small n (see `discrepancy_floor`); this is right on average at every n,
    which is why it may be negative.

    Args:
        counts: `[..., K]`.
        target: `[K]`; None is uniform.

    Returns:
        `[...]`; NaN below two images.
    """
    values = np.asarray(counts, dtype=np.float64)
    n = values.sum(axis=-1)
    spread = 1.0 - np.sum(class_shares(values) ** 2, axis=-1)
    noise: FloatArray = np.divide(spread, n - 1, out=np.full_like(spread, np.nan), where=n > 1)
    return discrepancies(values, target) ** 2 - noise


def discrepancy_floor(n: int, k: int, target: ArrayLike | None = None) -> float:
    """Discrepancy that a perfectly fair sampler is expected to show in `n` draws over `k` classes.

    Two classes: the mean absolute deviation of a binomial, exact. More: exact up to 32 draws, then the limit
    `n k D^2 ~ chi^2 with k - 1 degrees of freedom`. A target that is not uniform: mean of 40,000 seeded draws.

    Args:
        n: Images.
        k: Classes, at least 2.
        target: `[k]`, the distribution that counts as fair; None is uniform.

    Raises:
        InputError: When `n` < 1, `k` < 2 or the target does not fit.
    """
    if n < 1 or k < 2:
        raise InputError(f"the floor needs n >= 1 images and k >= 2 classes, got n={n}, k={k}")
    if target is not None and not np.allclose(goal := _checked_target(target, k), 1.0 / k):
        return _drawn_floor(n, tuple(goal.tolist()))
    if k == 2:
        return _binomial_floor(n)
    if n <= _EXACT_UP_TO:
        return float(_exact_floors(k)[n])
    return math.sqrt(2.0 / (n * k)) * math.exp(math.lgamma(k / 2) - math.lgamma((k - 1) / 2))


def corrected_prevalence(counts: ArrayLike, confusion: ArrayLike) -> FloatArray:
    """True shares behind a classifier's readings, by constrained inversion of its confusion matrix.

    The readings have shares `q = C^T p`; the answer is the `p` on the simplex with the least `|| C^T p - q ||_2`.
    Where the plain inverse is already a distribution, it is the answer.

    Args:
        counts: `[..., K]` images read as each class.
        confusion: `[K, K]`, `confusion[i, j] = P(read j | true i)`; rows sum to 1.

    Returns:
        `[..., K]` shares that sum to 1; NaN where a row of counts is empty.

    Raises:
        InputError: When the confusion matrix is not square, not a distribution a row, or cannot be inverted.
    """
    matrix = _checked_confusion(confusion)
    readings = class_shares(counts)
    if readings.shape[-1] != len(matrix):
        raise InputError(f"counts have {readings.shape[-1]} classes, the confusion matrix {len(matrix)}; use one list")
    result: FloatArray = readings @ np.linalg.inv(matrix)
    outside = np.argwhere((result < 0).any(axis=-1))
    for index in map(tuple, outside):
        result[index] = _nearest_on_simplex(matrix.T, readings[index])
    return result


def _nearest_on_simplex(matrix: FloatArray, reading: FloatArray) -> FloatArray:
    # For p on the simplex, A p - q = (A - q 1^T) p = B p. Minimising ||B s||^2 + (1^T s - 1)^2 over s >= 0 gives
    # a multiple of the minimiser of ||B p|| on the simplex (the best length only depends on ||B p||).
    stacked = np.vstack([matrix - reading[:, None], np.ones(len(reading))])
    solution = _least_squares_nonnegative(stacked, np.append(np.zeros(len(reading)), 1.0))
    nearest: FloatArray = solution / solution.sum()
    return nearest


def _least_squares_nonnegative(matrix: FloatArray, goal: FloatArray) -> FloatArray:
    """argmin over x >= 0 of `|| matrix x - goal ||`; Lawson and Hanson 1974, chapter 23."""
    size = matrix.shape[1]
    x, active = np.zeros(size), np.zeros(size, dtype=bool)
    for _ in range(10 * size):
        gradient = matrix.T @ (goal - matrix @ x)
        if active.all() or gradient[~active].max() <= 1e-12:
            break
        active[np.flatnonzero(~active)[gradient[~active].argmax()]] = True
        while True:
            trial = np.zeros(size)
            trial[active] = np.linalg.lstsq(matrix[:, active], goal, rcond=None)[0]
            blocking = active & (trial <= 0)
            if not blocking.any():
                break
            step = (x[blocking] / (x[blocking] - trial[blocking])).min()
            x = x + step * (trial - x)
            active &= x > 1e-14
            x[~active] = 0.0
        x = trial
    return x


def _binomial_floor(n: int) -> float:
    # E|X - n/2| = n C(n-1, n//2) / 2^n for X ~ Binomial(n, 1/2), and D = sqrt(2) |X - n/2| / n.
    choose = math.lgamma(n) - math.lgamma(n // 2 + 1) - math.lgamma(n - n // 2)
    return math.sqrt(2.0) * math.exp(choose - n * math.log(2.0))


@lru_cache(maxsize=32)
def _exact_floors(k: int) -> FloatArray:
    # weights[s, q] = sum over class counts with sum s and sum of squares q of 1 / prod(count!); one class at a time.
    n = _EXACT_UP_TO
    weights = np.zeros((n + 1, n * n + 1))
    weights[0, 0] = 1.0
    for _ in range(k):
        grown = np.zeros_like(weights)
        for count in range(n + 1):
            square = count * count
            grown[count:, square:] += weights[: n + 1 - count, : n * n + 1 - square] / math.factorial(count)
        weights = grown
    floors = np.full(n + 1, np.nan)
    for draws in range(1, n + 1):
        distances = np.sqrt(np.maximum(np.arange(n * n + 1) / draws**2 - 1.0 / k, 0.0))
        floors[draws] = math.exp(math.lgamma(draws + 1) - draws * math.log(k)) * (weights[draws] @ distances)
    return floors


@lru_cache(maxsize=1024)
def _drawn_floor(n: int, target: Sequence[float]) -> float:
    draws = np.random.default_rng(0).multinomial(n, target, size=_FLOOR_DRAWS)
    return float(discrepancies(draws, target).mean())


def _checked_counts(counts: ArrayLike) -> FloatArray:
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 1 or values.size < 2:
        raise InputError(f"discrepancy needs one count per class for at least 2 classes, got shape {values.shape}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"counts must be finite and at least 0, got {values.tolist()}")
    if values.sum() == 0:
        raise InputError("all class counts are 0: no image was read; check how many were dropped and why")
    return values


def _checked_target(target: ArrayLike, k: int) -> FloatArray:
    goal = np.asarray(target, dtype=np.float64)
    if goal.shape != (k,):
        raise InputError(f"the target has shape {goal.shape} but there are {k} classes; give one share per class")
    if not np.isfinite(goal).all() or (goal < 0).any() or abs(goal.sum() - 1.0) > 1e-6:
        raise InputError(f"target {goal.tolist()} is not a distribution; give shares >= 0 that sum to 1")
    return goal


def _checked_confusion(confusion: ArrayLike) -> FloatArray:
    matrix = np.asarray(confusion, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"the confusion matrix must be square (true class x read class), got shape {matrix.shape}")
    if not np.isfinite(matrix).all() or (matrix < 0).any() or not np.allclose(matrix.sum(axis=1), 1.0, atol=1e-6):
        raise InputError(f"rows of the confusion matrix must be P(read | true) and sum to 1, got {matrix.tolist()}")
    if np.linalg.cond(matrix) > _WORST_CONDITION:
        raise InputError("the confusion matrix cannot be inverted: the classifier does not tell two classes apart")
    return matrix
