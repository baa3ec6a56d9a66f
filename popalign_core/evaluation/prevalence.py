"""What is measured on identity-neutral prompts: class shares and how far they are from the target.

What each value estimates, and its interval covers. Let a prompt drawn from those the benchmark stands for show its
images' classes with shares `pi`, and let `p` be the mean of `pi` over prompts:

- `discrepancy_pooled`, `kl`, `entropy`, `parity_gap`, `bias`: the measure of `p`. The value is that of the shares
  found, which noise pushes away from the target (see the floor); the interval is of the measure of `p` itself. Every
  prompt weighs the same, however many of its images were read.
- `discrepancy_pooled_by_faces`, `discrepancy_joint_by_faces`, `share_by_faces:CLASS`: the same, every image read
  weighing the same, so a prompt whose faces are seldom found hardly counts.
- `discrepancy_unbiased`: the square of the discrepancy of `p`; right on average, so it may be below 0.
- `discrepancy_joint`: as pooled, over the combinations of all axes; the others too, under the axis `all`.
- `*_per_prompt`: the mean over prompts of what a prompt shows *in as many images as it has here*. It is above the mean
  measure of `pi` by about its floor.
- `discrepancy_worst10`: the mean of the ten worst of as many prompts, each with as many images.
- `share:CLASS`: `p`, as if unread images were like those read. `share_least:CLASS`, `share_most:CLASS`: of all images,
  were none or all of the unread ones of the class; whatever they show, the share lies between these.
- `share_corrected`, `share_cleam`, `share_weighted`, `discrepancy_corrected`, `discrepancy_cleam`: of the true classes
  (see `correction.py`).

With replicates, all are means over these replicates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from popalign_core.config import Axis
from popalign_core.evaluation.correction import Calibrated, corrected_measures
from popalign_core.evaluation.counts import FloatArray, PooledImages, indicator, joint_label
from popalign_core.evaluation.divergence import evenness, kl_divergence, pairwise_bias, parity_gap
from popalign_core.evaluation.fairness import class_shares, discrepancies, discrepancy_floor, squared_unbiased
from popalign_core.evaluation.measures import (
    NO_CLASS,
    Ends,
    Measure,
    Share,
    Statistic,
    Worst,
    jackknife,
    ratio,
    worst_mean,
)
from popalign_core.evaluation.share_distances import Distance

BY_FACES = "_by_faces"
_FLOOR_DRAWS = 2_000
_FLOOR_COUNTS = 1_000_000
"""Fair prompts drawn for a floor, at most."""


def neutral_measures(
    counts: FloatArray, cells: pd.DataFrame, axes: Sequence[Axis], calibrated: Mapping[str, Calibrated | str]
) -> list[Measure]:
    """All measures of a neutral benchmark.

    Args:
        counts: `[R, P, C]`.
        cells: `[C]` rows with `face` and `read:AXIS`.
        axes: In the order of the tables.
        calibrated: From `correction.calibrated_axes`.
    """
    measures: list[Measure] = []
    for axis in axes:
        terms = counts @ indicator(cells[f"read:{axis.name}"].to_numpy(), len(axis.classes))
        target = np.asarray(axis.shares())
        pooled, by_faces = PooledImages.by_prompts(terms), PooledImages.by_faces(terms)
        measures += [_pooled_discrepancy("discrepancy_pooled", axis.name, pooled, target)]
        measures += [*_prompt_discrepancies(axis.name, terms, target), _unbiased(axis.name, pooled, by_faces, target)]
        measures += _divergences(axis.name, pooled, terms, target)
        measures += _class_measures("share", axis, pooled)
        measures += _share_bounds(axis, terms, counts.sum(axis=-1))
        measures += [_pooled_discrepancy(f"discrepancy_pooled{BY_FACES}", axis.name, by_faces, target)]
        measures += _class_measures(f"share{BY_FACES}", axis, by_faces)
        if axis.name in calibrated:
            measures += corrected_measures(axis, terms, calibrated[axis.name])
    return [*measures, *_joint_measures(counts, cells, axes), *faceless_measures(counts, cells, axes)]


def _class_measures(metric: str, axis: Axis, images: PooledImages) -> Iterator[Share]:
    """Each class among the images read."""
    for number, label in enumerate(axis.classes):
        yield _pooled_share(f"{metric}:{label}", axis.name, images, number)


def _pooled_share(metric: str, axis: str, images: PooledImages, place: int) -> Share:
    share = share_measure(metric, axis, images.terms[..., place], images.terms.sum(axis=-1))
    return replace(share, n=images.n, effective=images.effective)


def _share_bounds(axis: Axis, terms: FloatArray, sampled: FloatArray) -> Iterator[Share]:
    """Each class among all images, were none of the unread ones of it, and were all.

    Args:
        axis: The axis.
        terms: `[R, P, K]` images read.
        sampled: `[R, P]` all images.
    """
    read = terms.sum(axis=-1)
    for number, label in enumerate(axis.classes):
        for metric, part in (("least", terms[..., number]), ("most", terms[..., number] + sampled - read)):
            images = PooledImages.by_prompts(np.stack([part, sampled - part], axis=-1))
            yield _pooled_share(f"share_{metric}:{label}", axis.name, images, 0)


def faceless_measures(counts: FloatArray, cells: pd.DataFrame, axes: Sequence[Axis]) -> list[Measure]:
    """Share of all images without one usable face; none where every axis is read off the whole image.

    Args:
        counts: `[R, P, C]`.
        cells: `[C]` rows with `face`.
        axes: Those measured.
    """
    if all(axis.of == "picture" for axis in axes):
        return []
    faceless = ~cells["face"].to_numpy(dtype=bool)
    return [share_measure("no_face_share", "", counts @ faceless.astype(np.float64), counts.sum(axis=-1))]


def share_measure(metric: str, axis: str, part: FloatArray, whole: FloatArray, why: str = NO_CLASS) -> Share:
    """Images of a part over images of a whole, both `[R, P]`."""
    terms = np.stack([part, whole], axis=-1)
    return Share(metric, axis, terms, ratio, int(whole.sum()), bounds=(0.0, 1.0), why=why)


def prompt_discrepancies(counts: ArrayLike, target: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Discrepancy of every prompt on its own, and the floor at its number of images.

    Args:
        counts: `[..., K]`.
        target: `[K]`.

    Returns:
        `[...]` and `[...]`; NaN for a prompt whose every image was dropped.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    sizes, place = np.unique(matrix.sum(axis=-1).astype(int), return_inverse=True)
    floors = np.asarray([discrepancy_floor(int(n), matrix.shape[-1], target) if n else np.nan for n in sizes])
    return discrepancies(matrix, target), floors[place].reshape(matrix.shape[:-1])


def _prompt_discrepancies(axis: str, terms: FloatArray, target: FloatArray) -> list[Measure]:
    noise, shown = _prompt_noise(terms, target), partial(_distance, target=target)
    per_prompt = replace(
        _per_prompt("discrepancy_per_prompt", axis, terms, shown, (0.0, _largest(shown, target))),
        floor=lambda: float(np.nanmean(prompt_discrepancies(terms, target)[1])),
        least=_noise_of_mean(noise),
    )
    worst_first = np.argsort(-np.nan_to_num(shown(class_shares(terms)), nan=-1.0), axis=1)
    worst = Worst(
        "discrepancy_worst10",
        axis,
        per_prompt.terms,
        per_prompt.statistic,
        per_prompt.n,
        floor=lambda: _worst_floor(terms, target),
        bounds=per_prompt.bounds,
        why=NO_CLASS,
        least=_noise_of_mean(np.take_along_axis(noise, worst_first[:, : Worst.N_WORST], axis=1)),
    )
    return [per_prompt, worst]


def _pooled_discrepancy(metric: str, axis: str, images: PooledImages, target: FloatArray) -> Distance:
    distance = partial(_distance, target=target)
    return replace(
        _pooled(metric, axis, images, target, distance, (0.0, _largest(distance, target))),
        floor=lambda: float(np.mean([discrepancy_floor(round(n), len(target), target) for n in images.effective])),
    )


def _unbiased(axis: str, images: PooledImages, by_faces: PooledImages, target: FloatArray) -> Distance:
    """Unlike `fairness.squared_unbiased` it takes off the differences between prompts too, if there are several."""

    def shown(shares: FloatArray) -> FloatArray:
        return _distance(shares, target) ** 2

    largest = _largest(shown, target)
    square = _pooled("discrepancy_unbiased", axis, images, target, shown, (-largest, largest))
    if square.n_prompts < 2:
        one_prompt = _pooled("discrepancy_unbiased", axis, by_faces, target, shown, (-largest, largest))
        return replace(one_prompt, statistic=lambda sums: squared_unbiased(sums, target))
    noise = jackknife(images.terms, lambda sums: class_shares(sums).reshape(len(sums), -1))
    return replace(square, estimate=square.value - float((noise**2).sum()) / len(images.terms))


def _divergences(axis: str, images: PooledImages, terms: FloatArray, target: FloatArray) -> Iterator[Measure]:
    """Kullback-Leibler, entropy, parity gap and bias of all prompts together, and their means over prompts.

    Args:
        axis: Its name.
        images: Of all prompts together.
        terms: `[R, P, K]` images read of each prompt.
        target: `[K]`.
    """
    k = len(target)
    for metric, distance in (
        ("kl", partial(kl_divergence, target=target)),
        ("parity_gap", partial(parity_gap, target=target)),
        ("bias", partial(pairwise_bias, target=target)),
    ):
        bounds = (0.0, _largest(distance, target))
        yield _pooled(metric, axis, images, target, distance, bounds, target=target)
        yield _per_prompt(f"{metric}_per_prompt", axis, terms, distance, bounds, target)
    uneven = partial(_signed, evenness, -1.0)
    yield _pooled("entropy", axis, images, np.full(k, 1 / k), uneven, (0.0, 1.0), -1.0, target)
    yield _per_prompt("entropy_per_prompt", axis, terms, evenness, (0.0, 1.0), target)


def _joint_measures(counts: FloatArray, cells: pd.DataFrame, axes: Sequence[Axis]) -> list[Measure]:
    sizes = [len(axis.classes) for axis in axes]
    label = joint_label([cells[f"read:{axis.name}"].to_numpy() for axis in axes], sizes)
    target = reduce(np.multiply.outer, [np.asarray(axis.shares()) for axis in axes]).ravel()
    terms = counts @ indicator(label, len(target))
    images = PooledImages.by_prompts(terms)
    distances: list[Measure] = [
        _pooled_discrepancy("discrepancy_joint", "all", images, target),
        _pooled_discrepancy(f"discrepancy_joint{BY_FACES}", "all", PooledImages.by_faces(terms), target),
    ]
    return [*distances, *_divergences("all", images, terms, target)] if len(axes) > 1 else distances


def _pooled(
    metric: str,
    axis: str,
    images: PooledImages,
    centre: FloatArray,
    distance: Statistic,
    bounds: Ends,
    sign: float = 1.0,
    target: FloatArray | None = None,
) -> Distance:
    value = partial(_signed, distance, sign)
    return Distance(
        metric,
        axis,
        images.terms,
        lambda sums: value(class_shares(sums)),
        images.n,
        floor=None if target is None else lambda: _drawn_floor(value, images.effective, target),
        bounds=bounds,
        why=NO_CLASS,
        effective=images.effective,
        centre=centre,
        distance=distance,
        sign=sign,
    )


def _per_prompt(
    metric: str, axis: str, terms: FloatArray, value: Statistic, bounds: Ends, target: FloatArray | None = None
) -> Measure:
    sizes = terms.sum(axis=-1)
    shown = np.where(sizes > 0, value(class_shares(terms)), 0.0)
    return Measure(
        metric,
        axis,
        np.stack([shown, (sizes > 0).astype(np.float64)], axis=-1),
        ratio,
        int(sizes.sum()),
        floor=None if target is None else lambda: _drawn_floor(value, sizes[sizes > 0], target),
        bounds=bounds,
        why=NO_CLASS,
    )


def _signed(distance: Statistic, sign: float, shares: FloatArray) -> FloatArray:
    return sign * distance(shares)


def _distance(shares: FloatArray, target: FloatArray) -> FloatArray:
    distance: FloatArray = np.linalg.norm(shares - target, axis=-1)
    return distance


def _largest(distance: Statistic, target: FloatArray) -> float:
    # of a convex function: where all images are of one class
    return float(distance(np.eye(len(target))).max())


def _prompt_noise(terms: FloatArray, target: FloatArray) -> FloatArray:
    """`[R, P]` variance of each prompt's discrepancy among repetitions with as many images, to first order."""
    sizes = terms.sum(axis=-1)
    shares = (terms + 0.5) / (sizes[..., None] + terms.shape[-1] / 2)
    ray = shares - target
    ray /= np.maximum(np.linalg.norm(ray, axis=-1, keepdims=True), 1e-9)
    spread = (shares * ray**2).sum(axis=-1) - (shares * ray).sum(axis=-1) ** 2
    noise: FloatArray = np.where(sizes > 0, spread / np.maximum(sizes, 1.0), np.nan)
    return noise


def _noise_of_mean(noise: FloatArray) -> float:
    """Variance of the mean over prompts, averaged over replicates, of `[R, P]` variances."""
    known = np.isfinite(noise)
    n = np.maximum(known.sum(axis=1), 1)
    return float((np.where(known, noise, 0.0).sum(axis=1) / n**2).sum()) / len(noise) ** 2


def _fair_counts(sizes: FloatArray, target: FloatArray) -> FloatArray:
    """`[draws, len(sizes), K]` counts of a perfectly fair sampler."""
    n_draws = int(np.clip(_FLOOR_COUNTS // max(sizes.size, 1), 10, _FLOOR_DRAWS))
    drawn = np.random.default_rng(0).multinomial(np.rint(sizes).astype(np.int64), target, size=(n_draws, sizes.size))
    return drawn.astype(np.float64)


def _drawn_floor(value: Statistic, sizes: FloatArray, target: FloatArray) -> float:
    return float(value(class_shares(_fair_counts(sizes, target))).mean())


def _worst_floor(terms: FloatArray, target: FloatArray) -> float:
    sizes = terms.sum(axis=-1)
    fair = (discrepancies(_fair_counts(n[n > 0], target), target) for n in sizes)
    return float(np.mean([worst_mean(values).mean() for values in fair]))
