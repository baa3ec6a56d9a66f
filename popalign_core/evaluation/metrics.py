"""The metrics table of one system, and the paired comparison of two.

Both go the same way: images -> labels -> counts of prompt x cell -> measures, on the counts and on resamples of
them. For two systems the cells are joint (what one showed x what the other showed for the same prompt and seed),
so a resample holds the same prompts and the same seeds for both, and the interval is that of the difference.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from popalign_core.config import Axis, EvaluationConfig
from popalign_core.errors import InputError
from popalign_core.evaluation.counts import FloatArray, Measure, count_cells, difference, indicator, label_images
from popalign_core.evaluation.fairness import class_shares
from popalign_core.evaluation.intervals import interval, resample_counts, resample_means
from popalign_core.evaluation.prevalence import faceless_measure, neutral_measures, prompt_discrepancies
from popalign_core.evaluation.recall import recall_measures

COLUMNS = ("system", "benchmark", "metric", "axis", "value", "ci_low", "ci_high", "n", "floor", "scorer", "note")
COMPARISON_COLUMNS = ("system", "reference", *COLUMNS[1:-1], "p_value", "p_adjusted", "note")
BENCHMARKS = ("neutral", "specific", "generic")
"""Benchmarks, each the prompts of that kind."""

SIDES = ("before", "after")
"""Suffixes of the labels of the two systems of a comparison."""

Measures = Callable[[pd.DataFrame], list[Measure]]


@dataclass(frozen=True)
class SystemFrames:
    """The evaluation images of one system, as tables.

    Attributes:
        name: The system's name in the metrics table.
        images: image_id, prompt_id, index, seed (pixels are not needed); where a column `is_shown` is false the picture
            was withheld, and nothing could score it.
        attributes: Attributes table of the neutral and specific images.
        scores: Scores table; may be empty.
    """

    name: str
    images: pd.DataFrame
    attributes: pd.DataFrame
    scores: pd.DataFrame


def compute_metrics(
    system: str,
    prompts: pd.DataFrame,
    images: pd.DataFrame,
    attributes: pd.DataFrame,
    scores: pd.DataFrame,
    axes: Sequence[Axis],
    config: EvaluationConfig,
    confusion: Mapping[str, ArrayLike] | None = None,
) -> pd.DataFrame:
    """Fairness on neutral prompts, recall on specific ones, scores on all, each with its interval.

    Args:
        system: Name of the system.
        prompts: Prompts table; the prompts that have images are evaluated.
        images: image_id, prompt_id, index, seed.
        attributes: Attributes table.
        scores: Scores table; every scorer is averaged on every benchmark that it has scored.
        axes: The axes, with their targets.
        config: Bootstrap size, confidence, seed.
        confusion: Axis name to `[K, K]` P(read | true); adds `discrepancy_corrected` and `share_corrected:CLASS`.

    Returns:
        The metrics table. `ci_low` and `ci_high` are NaN where a benchmark has a single prompt; `floor` is NaN for
        what is not a discrepancy. `discrepancy_unbiased` estimates the square and may be negative.

    Raises:
        InputError: When the tables do not fit together, no face was read, a score is NaN or missing for some images,
            or a scorer has two versions.
    """
    labels = label_images(prompts, images, attributes, axes)
    rows = []
    for benchmark, columns, measures_of in _benchmarks(axes, confusion or {}):
        chosen = labels[labels["kind"] == benchmark]
        if len(chosen):
            counts, cells = count_cells(chosen, columns)
            rows += _measure_rows(system, benchmark, attributes, measures_of(cells), counts, config)
    for benchmark in BENCHMARKS:
        chosen = labels[labels["kind"] == benchmark]
        for scorer, values in _scored(scores, chosen, _withheld(images)).items():
            rows.append(_mean_row(system, benchmark, scorer, values, chosen["cluster"], config))
    return _table(rows)


def compare_systems(
    prompts: pd.DataFrame,
    base: SystemFrames,
    aligned: SystemFrames,
    axes: Sequence[Axis],
    config: EvaluationConfig,
    confusion: Mapping[str, ArrayLike] | None = None,
) -> pd.DataFrame:
    """Paired differences, aligned minus base, of everything `compute_metrics` measures.

    Args:
        prompts: Prompts table of both.
        base: The system compared with.
        aligned: The system compared; must have the same prompts, image indices and seeds.
        axes: The axes.
        config: Bootstrap size, confidence, seed.
        confusion: As in `compute_metrics`.

    Returns:
        The comparison table: `value` is the difference, `n` the images read (or scored) in both, `floor` NaN.

    Raises:
        InputError: As `compute_metrics`; or when the two are not on the same prompts and seeds.
    """
    labels = _paired_labels(prompts, base, aligned, axes)
    name, rows = aligned.name, []
    for benchmark, columns, measures_of in _benchmarks(axes, confusion or {}):
        chosen = labels[labels["kind"] == benchmark]
        if len(chosen):
            counts, cells = count_cells(chosen, [f"{column}:{side}" for side in SIDES for column in columns])
            sides = [measures_of(_side(cells, side)) for side in SIDES]
            changes = [difference(before, after) for before, after in zip(*sides, strict=True)]
            rows += _measure_rows(name, benchmark, base.attributes, changes, counts, config)
    for benchmark in BENCHMARKS:
        chosen = labels[labels["kind"] == benchmark]
        before, after = (
            _scored(system.scores, _side(chosen, side), _withheld(system.images))
            for system, side in zip((base, aligned), SIDES, strict=True)
        )
        if before.keys() != after.keys():
            raise InputError(
                f"{base.name!r} has scores by {sorted(before)} on {benchmark} prompts, {aligned.name!r} by "
                f"{sorted(after)}; score both with the same scorers and versions"
            )
        for scorer in before:
            rows.append(_mean_row(name, benchmark, scorer, after[scorer] - before[scorer], chosen["cluster"], config))
    table = _table(rows).assign(reference=base.name, p_value=np.nan, p_adjusted=np.nan)
    return table[list(COMPARISON_COLUMNS)]


def per_prompt_table(
    system: str, prompts: pd.DataFrame, images: pd.DataFrame, attributes: pd.DataFrame, axes: Sequence[Axis]
) -> pd.DataFrame:
    """Discrepancy of every neutral prompt on every axis.

    Returns:
        system, prompt_id, text, axis, n (images read), n_images, discrepancy (NaN if none was read), floor, and the
        most frequent class with its share (`leading`, `leading_share`).
    """
    labels = label_images(prompts, images, attributes, axes)
    labels = labels[labels["kind"] == "neutral"]
    texts = prompts.set_index("prompt_id")["text"]
    parts = []
    for axis in axes:
        counts, cells = count_cells(labels, [f"read:{axis.name}"])
        read = counts @ indicator(cells[f"read:{axis.name}"].to_numpy(), len(axis.classes))
        found, floors = prompt_discrepancies(read, axis.shares())
        ids = np.unique(labels["cluster"].to_numpy(dtype=str))
        shares = np.nan_to_num(class_shares(read))
        columns = {
            "system": system,
            "prompt_id": ids,
            "text": texts.loc[ids].to_numpy(),
            "axis": axis.name,
            "n": read.sum(axis=1).astype(np.int64),
            "n_images": counts.sum(axis=1).astype(np.int64),
            "discrepancy": found,
            "floor": floors,
            "leading": [axis.classes[number] for number in shares.argmax(axis=1)],
            "leading_share": shares.max(axis=1),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _benchmarks(axes: Sequence[Axis], confusion: Mapping[str, ArrayLike]) -> Iterator[tuple[str, list[str], Measures]]:
    read = [f"read:{axis.name}" for axis in axes]
    asked = [f"asked:{axis.name}" for axis in axes]
    yield "neutral", ["face", *read], lambda cells: neutral_measures(cells, axes, confusion)
    yield "specific", ["face", *read, *asked], lambda cells: [*recall_measures(cells, axes), faceless_measure(cells)]


def _measure_rows(
    system: str,
    benchmark: str,
    attributes: pd.DataFrame,
    measures: Sequence[Measure],
    counts: FloatArray,
    config: EvaluationConfig,
) -> list[dict[str, Any]]:
    estimates = [float(measure.statistic(counts)) for measure in measures]
    for measure, estimate in zip(measures, estimates, strict=True):
        if not np.isfinite(estimate):
            raise InputError(
                f"{system}: {measure.metric} on axis {measure.axis!r} has nothing to measure among the "
                f"{counts.sum():g} {benchmark} images (no usable face); see the drop reasons in the attributes table"
            )
    blocks = [
        [measure.statistic(block.astype(np.float64)) for measure in measures]
        for block in resample_counts(counts, config.n_bootstrap, config.seed)
    ]
    rows = []
    for number, (measure, estimate) in enumerate(zip(measures, estimates, strict=True)):
        resampled = np.concatenate([block[number] for block in blocks])
        ends = _ends(estimate, resampled, len(counts), config, measure.bounds)
        floor = measure.floor(counts) if measure.floor else np.nan
        scorer = str(attributes["classifier"].iloc[0])
        row = (system, benchmark, measure.metric, measure.axis, estimate, *ends, measure.n(counts), floor, scorer, "")
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


def _mean_row(
    system: str, benchmark: str, scorer: str, values: FloatArray, clusters: "pd.Series[str]", config: EvaluationConfig
) -> dict[str, Any]:
    is_scored = np.isfinite(values)  # those withheld are not
    values, clusters = values[is_scored], clusters[is_scored]
    prompt_index = np.unique(clusters.to_numpy(dtype=str), return_inverse=True)[1]
    resampled = resample_means(values, prompt_index, config.n_bootstrap, config.seed)
    ends = _ends(float(values.mean()), resampled, int(prompt_index.max()) + 1, config)
    metric = scorer.rpartition("@")[0]
    row = (system, benchmark, metric, "", float(values.mean()), *ends, len(values), np.nan, scorer, "")
    return dict(zip(COLUMNS, row, strict=True))


def _ends(
    estimate: float,
    resampled: FloatArray,
    n_prompts: int,
    config: EvaluationConfig,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[float, float]:
    # One prompt says nothing about other prompts: no interval rather than a narrow one.
    if n_prompts < 2:
        return np.nan, np.nan
    found = interval(estimate, resampled, config.confidence, bounds)
    return (np.nan, np.nan) if found is None else found


def _withheld(images: pd.DataFrame) -> set[str]:
    return set(images.loc[~images["is_shown"], "image_id"]) if "is_shown" in images else set()


def _scored(scores: pd.DataFrame, labels: pd.DataFrame, withheld: Set[str]) -> dict[str, FloatArray]:
    """Values in the order of `labels` of every scorer that scored them, under "scorer@version"; NaN if withheld."""
    chosen = scores[scores["image_id"].isin(labels["image_id"])]
    result = {}
    for scorer, rows in chosen.groupby("scorer"):
        versions = sorted(rows["version"].unique())
        if len(versions) > 1:
            raise InputError(f"scorer {scorer!r} has scores of several versions, {versions}; keep one")
        if rows["image_id"].duplicated().any():
            raise InputError(f"scorer {scorer!r} scored an image twice; keep one score an image")
        values = rows.set_index("image_id")["value"].reindex(labels["image_id"]).to_numpy(dtype=np.float64)
        missing = ~np.isfinite(values) & ~labels["image_id"].isin(withheld).to_numpy()
        if missing.any():
            raise InputError(
                f"scorer {scorer!r} has no finite score for {int(missing.sum())} of {len(values)} "
                "images of a benchmark; score all of them, or none"
            )
        result[f"{scorer}@{versions[0]}"] = values
    return result


def _paired_labels(
    prompts: pd.DataFrame, base: SystemFrames, aligned: SystemFrames, axes: Sequence[Axis]
) -> pd.DataFrame:
    sides = [label_images(prompts, system.images, system.attributes, axes) for system in (base, aligned)]
    keys = ["prompt_id", "index", "seed", "kind", "cluster"]
    readers = {name for system in (base, aligned) for name in system.attributes["classifier"].unique()}
    if len(readers) > 1:
        raise InputError(f"{base.name!r} and {aligned.name!r} were read by different classifiers, {sorted(readers)}")
    renamed = [
        side.rename(columns={column: f"{column}:{name}" for column in side.columns if column not in keys})
        for side, name in zip(sides, SIDES, strict=True)
    ]
    merged = renamed[0].merge(renamed[1], on=keys, how="inner")
    if not len(merged) == len(sides[0]) == len(sides[1]):
        raise InputError(
            f"{base.name!r} has {len(sides[0])} images and {aligned.name!r} {len(sides[1])}, of which {len(merged)} "
            "share prompt, index and seed; a paired comparison needs all of them to: sample both with one seed"
        )
    return merged


def _side(table: pd.DataFrame, side: str) -> pd.DataFrame:
    names = {column: column.removesuffix(f":{side}") for column in table.columns if column.endswith(f":{side}")}
    return table[list(names)].rename(columns=names)


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    if not rows:
        raise InputError("there is no image to evaluate; sample the evaluation prompts first")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": np.int64})
