"""What is measured on identity-neutral prompts: class shares and their distance from the target."""

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from popalign_core.config import Axis
from popalign_core.evaluation.counts import FloatArray, Measure, Statistic, indicator, joint_label, share_measure
from popalign_core.evaluation.fairness import (
    corrected_prevalence,
    discrepancies,
    discrepancy_floor,
    squared_unbiased,
)

N_WORST = 10
"""Prompts in `discrepancy_worst10`."""
_FLOOR_DRAWS = 2_000


def neutral_measures(cells: pd.DataFrame, axes: Sequence[Axis], confusion: Mapping[str, ArrayLike]) -> list[Measure]:
    """All measures of the neutral benchmark.

    Args:
        cells: `[C]` rows with `face` and `read:AXIS`.
        axes: In the order of the tables.
        confusion: Axis name to `[K, K]` P(read | true), for the axes whose classifier has one.
    """
    measures = []
    for axis in axes:
        member = indicator(cells[f"read:{axis.name}"].to_numpy(), len(axis.classes))
        measures += _discrepancy_measures(axis.name, member, np.asarray(axis.shares()))
        for number, label in enumerate(axis.classes):
            measures.append(share_measure(f"share:{label}", axis.name, member[:, number], member.sum(axis=1)))
        if axis.name in confusion:
            measures += _corrected_measures(axis, member, np.asarray(confusion[axis.name], dtype=np.float64))
    measures.append(_joint_measure(cells, axes))
    return [*measures, faceless_measure(cells)]


def faceless_measure(cells: pd.DataFrame) -> Measure:
    """Share of all images without one usable face; `cells` is `[C]` rows with `face`."""
    return share_measure("no_face_share", "", ~cells["face"].to_numpy(dtype=bool), np.ones(len(cells)))


def prompt_discrepancies(counts: ArrayLike, target: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Discrepancy of every prompt on its own, and the floor at its number of images.

    Args:
        counts: `[P, K]`.
        target: `[K]`.

    Returns:
        `[P]` and `[P]`; NaN for a prompt whose every image was dropped.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    sizes = matrix.sum(axis=1).astype(int)
    floors = [discrepancy_floor(int(n), matrix.shape[1], target) if n else np.nan for n in sizes]
    return discrepancies(matrix, target), np.asarray(floors)


def _discrepancy_measures(axis: str, member: FloatArray, target: FloatArray) -> list[Measure]:
    counted, bounds = member.sum(axis=1), (0.0, _largest(target))

    def worst_floor(counts: FloatArray) -> float:
        sizes = (counts @ counted).astype(int)
        fair = np.random.default_rng(0).multinomial(sizes, target, size=(_FLOOR_DRAWS, len(sizes)))
        return float(_worst_mean(discrepancies(fair, target)).mean())

    return [
        _pooled_measure("discrepancy_pooled", axis, member, target),
        Measure(
            "discrepancy_per_prompt",
            axis,
            lambda counts: _mean(discrepancies(counts @ member, target)),
            counted,
            lambda counts: float(_mean(prompt_discrepancies(counts @ member, target)[1])),
            bounds,
        ),
        Measure(
            "discrepancy_worst10",
            axis,
            lambda counts: _worst_mean(discrepancies(counts @ member, target)),
            counted,
            worst_floor,
            bounds,
        ),
        Measure(
            "discrepancy_unbiased",
            axis,
            lambda counts: squared_unbiased(counts.sum(axis=-2) @ member, target),
            counted,
            bounds=(-1.0, bounds[1] ** 2),
        ),
    ]


def _pooled_measure(metric: str, axis: str, member: FloatArray, target: FloatArray) -> Measure:
    counted = member.sum(axis=1)
    return Measure(
        metric,
        axis,
        lambda counts: discrepancies(counts.sum(axis=-2) @ member, target),
        counted,
        lambda counts: discrepancy_floor(round(float((counts @ counted).sum())), len(target), target),
        (0.0, _largest(target)),
    )


def _joint_measure(cells: pd.DataFrame, axes: Sequence[Axis]) -> Measure:
    sizes = [len(axis.classes) for axis in axes]
    label = joint_label([cells[f"read:{axis.name}"].to_numpy() for axis in axes], sizes)
    target = reduce(np.multiply.outer, [np.asarray(axis.shares()) for axis in axes]).ravel()
    return _pooled_measure("discrepancy_joint", "all", indicator(label, len(target)), target)


def _corrected_measures(axis: Axis, member: FloatArray, confusion: FloatArray) -> list[Measure]:
    target, counted = np.asarray(axis.shares()), member.sum(axis=1)

    def shares(counts: FloatArray) -> FloatArray:
        return corrected_prevalence(counts.sum(axis=-2) @ member, confusion)

    def share_of(number: int) -> Statistic:
        return lambda counts: shares(counts)[..., number]

    distance = Measure(
        "discrepancy_corrected",
        axis.name,
        lambda counts: discrepancies(shares(counts), target),
        counted,
        bounds=(0.0, _largest(target)),
    )
    names = enumerate(axis.classes)
    return [distance, *(Measure(f"share_corrected:{c}", axis.name, share_of(i), counted) for i, c in names)]


def _largest(target: FloatArray) -> float:
    # All mass on the class with the least target share.
    return float(discrepancies(np.eye(len(target))[target.argmin()], target))


def _mean(values: FloatArray) -> FloatArray:
    """Mean over the last axis of what is not NaN; NaN when nothing is."""
    known = np.isfinite(values)
    n = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    average: FloatArray = np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)
    return average


def _worst_mean(values: FloatArray) -> FloatArray:
    ordered = -np.sort(-values, axis=-1)  # largest first, NaN last
    return _mean(ordered[..., :N_WORST])
