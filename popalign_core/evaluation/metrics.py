"""The metrics table of one system; the comparison of several is in `paired.py`.

Images -> labels -> counts by replicate, prompt and cell -> measures, each with its interval. What every value
estimates is in `prevalence.py` and `recall.py`; a score is the mean over images of prompts like these.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from popalign_core.config import Axis, EvaluationConfig
from popalign_core.config.evaluation import CMMD, FID, KID
from popalign_core.errors import InputError
from popalign_core.evaluation.correction import calibrated_axes
from popalign_core.evaluation.counts import FloatArray, count_cells, indicator, label_images
from popalign_core.evaluation.fairness import class_shares
from popalign_core.evaluation.frames import Protocol, SystemFrames, benchmarks, measure_benchmark
from popalign_core.evaluation.measures import NO_ENDS, ONE_PROMPT, Measure
from popalign_core.evaluation.paired import COMPARISON_COLUMNS, compare_all, compare_systems
from popalign_core.evaluation.prevalence import prompt_discrepancies

__all__ = [
    "COLUMNS",
    "COMPARISON_COLUMNS",
    "READING_COLUMNS",
    "SystemFrames",
    "compare_all",
    "compare_systems",
    "compute_metrics",
    "measure_row",
    "of_reading",
    "per_prompt_table",
    "with_absent_rows",
]

COLUMNS = ("system", "benchmark", "metric", "axis", "value", "ci_low", "ci_high", "n", "floor", "scorer", "note")
READING_COLUMNS = ("system", "reading", *COLUMNS[1:])
_READING_METRICS = ("no_face_share", "discrepancy_pooled", "discrepancy_per_prompt", "recall")
PER_PROMPT_COLUMNS = (
    *("system", "prompt_id", "text", "axis", "n", "n_images", "discrepancy", "floor", "leading", "leading_share"),
)


def compute_metrics(
    prompts: pd.DataFrame,
    frames: SystemFrames,
    axes: Sequence[Axis],
    config: EvaluationConfig,
    calibration: pd.DataFrame | None = None,
    benchmark_axes: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Fairness on neutral prompts, recall on specific ones, scores on all, each with its interval.

    Args:
        prompts: Prompts table; the prompts that have images are evaluated, by `benchmark` (by kind without it).
        frames: The system's images, what was read off them, and their scores; every scorer is averaged on every
            benchmark that it has scored.
        axes: The axes, with their targets.
        config: Confidence; size and seed of the draws behind intervals of distances.
        calibration: Table `calibration` of the classifier; adds `discrepancy_corrected`, `share_corrected:CLASS` and
            the same of CLEAM for its axes.
        benchmark_axes: Benchmark to the axes measured on it; all where it is not named.

    Returns:
        The metrics table. What could not be measured has value NaN, n 0 and the reason in `note`. `ci_low` and
        `ci_high` are NaN where a benchmark has a single prompt; `floor` is NaN for what is no distance from a target.

    Raises:
        InputError: When the tables do not fit together, a score is NaN or missing for some images, a scorer has two
            versions, or the calibration is of another classifier.
    """
    labels = label_images(prompts, frames.images, frames.attributes, axes)
    if not len(labels):
        raise InputError("there is no image to evaluate; sample the evaluation prompts first")
    classifiers = frames.attributes["classifier"].unique()
    known = calibrated_axes(calibration, str(classifiers[0]), axes, config.confidence) if len(classifiers) else {}
    protocol = Protocol(axes, known, benchmark_axes or {})
    rows = [
        measure_row(frames.name, benchmark, measured.scorer, measured.measure, config)
        for benchmark in benchmarks(labels)
        for measured in measure_benchmark(labels[labels["benchmark"] == benchmark], None, frames, protocol)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": np.int64})


def of_reading(reading: str, metrics: pd.DataFrame) -> pd.DataFrame:
    """Rows of `metrics` that rest on the reading of the images, with its name in front."""
    is_share = metrics["metric"].str.startswith("share:")
    chosen = metrics[metrics["metric"].isin(_READING_METRICS) | is_share].assign(reading=reading)
    return chosen[list(READING_COLUMNS)]


def with_absent_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """Metrics tables of several systems, and a row with the reason for what one lacks that another has.

    Images made elsewhere need not be of all benchmarks. The reference has no distance from itself, and needs none.
    """
    measures = metrics[~metrics["metric"].isin((CMMD, FID, KID))].drop_duplicates(["benchmark", "metric", "axis"])
    parts = [metrics]
    for system, rows in metrics.groupby("system", sort=False):
        known = pd.MultiIndex.from_frame(rows[["benchmark", "metric", "axis"]])
        lacking = measures[~pd.MultiIndex.from_frame(measures[["benchmark", "metric", "axis"]]).isin(known)]
        has_images = lacking["benchmark"].isin(rows["benchmark"])
        note = np.where(
            has_images, "not measured: there is no score", "not measured: there is no image of these prompts"
        )
        nothing = dict.fromkeys(("value", "ci_low", "ci_high", "floor"), np.nan)
        parts.append(lacking.assign(system=system, n=0, note=note, **nothing))
    return pd.concat(parts, ignore_index=True)


def per_prompt_table(
    system: str,
    prompts: pd.DataFrame,
    images: pd.DataFrame,
    attributes: pd.DataFrame,
    axes: Sequence[Axis],
    benchmark_axes: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Discrepancy of every neutral prompt on every axis measured on its benchmark; means over replicates.

    Returns:
        system, prompt_id, text, axis, n (images read), n_images, discrepancy (NaN if none was read), floor, and the
        most frequent class with its share (`leading`, `leading_share`; "" and NaN if none was read).
    """
    labels = label_images(prompts, images, attributes, axes)
    labels = labels[labels["kind"] == "neutral"]
    texts, protocol = prompts.set_index("prompt_id")["text"], Protocol(axes, benchmark_axes=benchmark_axes or {})
    parts = [pd.DataFrame(columns=list(PER_PROMPT_COLUMNS))]
    for axis in axes:
        measured = labels[[axis in protocol.axes_of(benchmark) for benchmark in labels["benchmark"]]]
        if measured.empty:
            continue
        counted = count_cells(measured, [f"read:{axis.name}"])
        read = counted.counts @ indicator(counted.cells[f"read:{axis.name}"].to_numpy(), len(axis.classes))
        found, floors = (_known_mean(values) for values in prompt_discrepancies(read, axis.shares()))
        shares = _known_mean(class_shares(read))
        places = np.nan_to_num(shares).argmax(axis=1)
        columns = {
            "system": system,
            "prompt_id": counted.clusters,
            "text": texts.loc[counted.clusters].to_numpy(),
            "axis": axis.name,
            "n": read.sum(axis=(0, 2)).astype(np.int64),
            "n_images": counted.counts.sum(axis=(0, 2)).astype(np.int64),
            "discrepancy": found,
            "floor": floors,
            "leading": np.where(np.isfinite(found), np.array(axis.classes)[places], ""),
            "leading_share": shares.max(axis=1),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def measure_row(system: str, benchmark: str, scorer: str, measure: Measure, config: EvaluationConfig) -> dict[str, Any]:
    """A row of `metrics`: value, interval, floor, or why there is none."""
    value = measure.value
    is_known = bool(np.isfinite(value))
    low, high = measure.bounded_interval(config) if is_known else NO_ENDS
    notes = [] if np.isfinite(low) else [ONE_PROMPT if is_known else measure.reason]
    if is_known and measure.assumes:
        notes.append(measure.assumes)
    replicates = measure.replicates()
    if is_known and len(replicates) > 1:
        notes.append("seeds: " + " ".join(f"{part:.3g}" for part in replicates))
    floor = measure.floor() if is_known and measure.floor else np.nan
    n = measure.n if is_known else 0
    values = (benchmark, measure.metric, measure.axis, value if is_known else np.nan, low, high, n, floor)
    return dict(zip(COLUMNS, (system, *values, scorer, "; ".join(notes)), strict=True))


def _known_mean(values: FloatArray) -> FloatArray:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    known = np.isfinite(values)
    n = known.sum(axis=0)
    mean: FloatArray = np.divide(
        np.where(known, values, 0.0).sum(axis=0), n, out=np.full(values.shape[1:], np.nan), where=n > 0
    )
    return mean
