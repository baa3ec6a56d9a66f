"""Two classifiers side by side on the same images: how often they agree, and how much of it chance would give."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from popalign_core.config import Axis, EvaluationConfig
from popalign_core.evaluation.counts import UNREAD, FloatArray, count_cells, label_images
from popalign_core.evaluation.frames import Protocol, benchmarks
from popalign_core.evaluation.measures import Measure
from popalign_core.evaluation.metrics import COLUMNS, measure_row
from popalign_core.evaluation.prevalence import share_measure


def agreement_rows(
    system: str,
    prompts: pd.DataFrame,
    images: pd.DataFrame,
    first: pd.DataFrame,
    second: pd.DataFrame,
    axes: Sequence[Axis],
    config: EvaluationConfig,
    benchmark_axes: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """`agreement` and Cohen's `kappa` (1960) of two classifiers, among the images of which both read a class.

    Args:
        system: Name of the system whose images they are.
        prompts: Prompts table.
        images: image_id, prompt_id, index, seed; `replicate`, if there are several.
        first: Attributes table of one classifier.
        second: Of the other, of the same images.
        axes: The axes.
        config: Confidence.
        benchmark_axes: Benchmark to the axes measured on it; all where it is not named.

    Returns:
        Rows of `metrics` for every benchmark with people and every axis; `scorer` is both names, "A|B". Kappa is 1 for
        full agreement and 0 for that of chance; it is not measured where both say the same of every image.

    Raises:
        InputError: When either table does not fit the images.
    """
    labels = [label_images(prompts, images, attributes, axes) for attributes in (first, second)]
    both = "|".join(str(name) for attributes in (first, second) for name in attributes["classifier"].unique()[:1])
    protocol, rows = Protocol(axes, benchmark_axes=benchmark_axes or {}), []
    people = labels[0]["kind"] != "generic"
    table = labels[0].assign(**{f"second:{axis.name}": labels[1][f"read:{axis.name}"] for axis in axes})[people]
    for benchmark in benchmarks(table):
        chosen = table[table["benchmark"] == benchmark]
        for axis in protocol.axes_of(benchmark):
            rows += [measure_row(system, benchmark, both, measure, config) for measure in _measures(chosen, axis)]
    result: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": np.int64})
    return result


def _measures(labels: pd.DataFrame, axis: Axis) -> list[Measure]:
    counted = count_cells(labels, [f"read:{axis.name}", f"second:{axis.name}"])
    numbers, k = counted.cells.to_numpy(), len(axis.classes)
    known = (numbers != UNREAD).all(axis=1)
    confused = np.zeros((*counted.counts.shape[:2], k, k))
    confused[..., numbers[known, 0], numbers[known, 1]] = counted.counts[..., known]
    terms = confused.reshape(*confused.shape[:2], k * k)
    n, why = int(terms.sum()), "not measured: no image was read by both"
    same = np.einsum("rpkk->rp", confused)
    agreement = share_measure("agreement", axis.name, same, terms.sum(axis=-1), why)
    if n and float(_expected(terms.sum(axis=(0, 1)), k)) == 1.0:
        why = "not measured: both read one class only"
    return [agreement, Measure("kappa", axis.name, terms, lambda sums: _kappa(sums, k), n, bounds=(-1.0, 1.0), why=why)]


def _kappa(sums: FloatArray, k: int) -> FloatArray:
    total = sums.sum(axis=-1)
    seen = np.einsum("...kk->...", sums.reshape(*sums.shape[:-1], k, k))
    chance = _expected(sums, k)
    room = np.where((total > 0) & (chance < 1.0), 1.0 - chance, np.nan)
    kappa: FloatArray = (seen / np.where(total > 0, total, np.nan) - chance) / room
    return kappa


def _expected(sums: FloatArray, k: int) -> FloatArray:
    """Agreement by chance: classifiers that say each class as often, but of any image."""
    square = sums.reshape(*sums.shape[:-1], k, k)
    total = np.maximum(sums.sum(axis=-1), 1.0)
    expected: Any = (square.sum(axis=-1) * square.sum(axis=-2)).sum(axis=-1) / total**2
    return np.asarray(expected, dtype=np.float64)
