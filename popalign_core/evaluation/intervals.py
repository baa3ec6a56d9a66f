"""Bootstrap intervals, clustered on prompts.

Two stages a resample. First the prompts, because they are what was drawn: the claim is about occupations nobody
tried, and images of one prompt are alike, so 840 images of 14 prompts are nearer to 14 observations than to 840.
Then, within each prompt drawn, its images: a share read off 60 images is itself uncertain, and with the dozen
prompts a benchmark can afford, the first stage alone gives intervals that are too narrow.

The second stage works on the count matrix `[P, C]` (prompt x cell): drawing n images with replacement is one
multinomial draw from the prompt's shares. The cost therefore does not grow with the number of images.

On simulated populations (14 prompts x 60 images, 2 and 3 classes, prompt effects) 95% intervals of the pooled and
the mean per-prompt discrepancy covered the truth in 91% to 95%; with 40 prompts x 20 images in 94% to 95%.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from popalign_core.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_CELLS_AT_ONCE = 4_000_000
"""Counts held in memory at a time (32 MB); how they are cut changes no result."""


def resample_prompts(n_prompts: int, n_resamples: int, generator: np.random.Generator) -> IntArray:
    """Which prompts each resample holds, with replacement, `[R, P]`."""
    return generator.integers(0, n_prompts, size=(n_resamples, n_prompts))


def resample_counts(counts: ArrayLike, n_resamples: int, seed: int) -> Iterator[IntArray]:
    """Resampled count matrices, in blocks.

    Systems compared image by image get *the same* resamples when `counts` is over their joint cells (what the
    base showed x what the aligned model showed for the same prompt and seed) and each takes its own margin.

    Args:
        counts: `[P, C]` images of each prompt in each cell.
        n_resamples: How many in all.
        seed: Equal seeds draw equal prompts, whatever the cells are.

    Yields:
        `[r, P, C]`, the r summing to `n_resamples`.

    Raises:
        InputError: When `counts` is not a matrix of non-negative whole numbers.
    """
    matrix = np.asarray(counts)
    if matrix.ndim != 2 or 0 in matrix.shape or (matrix < 0).any() or (matrix != np.floor(matrix)).any():
        raise InputError(f"counts must be whole numbers >= 0, prompts x cells, got shape {matrix.shape}")
    generator = np.random.default_rng(seed)
    totals = matrix.sum(axis=1).astype(np.int64)
    shares = matrix / np.maximum(totals, 1)[:, None]
    prompts = resample_prompts(len(matrix), n_resamples, generator)
    block = max(1, _CELLS_AT_ONCE // matrix.size)
    for start in range(0, n_resamples, block):
        drawn = prompts[start : start + block]
        yield generator.multinomial(totals[drawn], shares[drawn])


def resample_means(values: ArrayLike, prompt_index: ArrayLike, n_resamples: int, seed: int) -> FloatArray:
    """Resampled means of a score over images.

    The mean of a prompt's resampled images is drawn from the normal distribution with the same mean and variance
    (`s^2 / n`) as the bootstrap's own, so memory does not grow with the number of images.

    Args:
        values: `[N]` one score an image; for paired systems the difference of the two.
        prompt_index: `[N]` whole numbers from 0.
        n_resamples: R.
        seed: As in `resample_counts`.

    Returns:
        `[R]`.
    """
    index = np.unique(np.asarray(prompt_index), return_inverse=True)[1]
    scores = np.asarray(values, dtype=np.float64)
    n = np.bincount(index)
    means = np.bincount(index, weights=scores) / n
    deviations = np.sqrt(np.bincount(index, weights=(scores - means[index]) ** 2) / n) / np.sqrt(n)
    generator = np.random.default_rng(seed)
    drawn = resample_prompts(len(n), n_resamples, generator)
    resampled = means[drawn] + deviations[drawn] * generator.standard_normal(drawn.shape)
    averages: FloatArray = (n[drawn] * resampled).sum(axis=1) / n[drawn].sum(axis=1)
    return averages


def interval(
    estimate: float, resampled: ArrayLike, confidence: float, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float] | None:
    """Percentile interval, centred on the estimate.

    A discrepancy is a distance: noise only adds to it, and a resample has the sample's noise once more, so its
    plain percentiles sit too high and may miss the estimate. The mean excess of the resamples is therefore taken
    off. What is covered is the discrepancy *expected at this number of images*: read it beside its floor.

    Args:
        estimate: The statistic on the real counts.
        resampled: `[R]` the statistic on each resample; NaN where a resample had nothing to measure.
        confidence: For example .95.
        bounds: What the statistic can be; the interval is cut to it.

    Returns:
        (low, high), or None when over 5% of the resamples had nothing to measure.
    """
    values: NDArray[Any] = np.asarray(resampled, dtype=np.float64)
    usable = values[np.isfinite(values)]
    if usable.size < 0.95 * values.size or not np.isfinite(estimate):
        return None
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(usable, [tail, 1.0 - tail]) - (usable.mean() - estimate)
    return float(np.clip(low, *bounds)), float(np.clip(high, *bounds))
