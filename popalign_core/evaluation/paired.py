"""Systems compared on the same prompts: differences with intervals, permutation tests, Holm's correction.

The test asks whether the names of two systems matter. In each of many permutations the two change places in some
prompts, all images and all replicates of a prompt together; the p-value is the share of permutations with a difference
as large as the one found (two-sided; the one found is one of them). Shares of few images fall on few values: other
permutations with the very same difference count half (Lancaster's mid-p), or equal systems would be called different
in 3 of 100 and not in 5. The test assumes nothing but that prompts are independent of each other. Equal seeds make
differences less noisy; without them the row says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import Axis, EvaluationConfig
from popalign_core.errors import InputError
from popalign_core.evaluation.correction import calibrated_axes
from popalign_core.evaluation.counts import FloatArray, label_images
from popalign_core.evaluation.frames import Measured, Protocol, SystemFrames, benchmarks, measure_benchmark
from popalign_core.evaluation.measures import NO_ENDS, ONE_PROMPT, Measure

COMPARISON_COLUMNS = (
    *("system", "reference", "benchmark", "metric", "axis", "value", "ci_low", "ci_high", "n", "floor", "scorer"),
    *("p_value", "p_adjusted", "note"),
)
HEADLINES = ("discrepancy_pooled", "discrepancy_per_prompt", "discrepancy_joint", "recall")
"""Measures that are corrected for one another, with every score. The others are there to explain these."""

ONLY_AXIS = "as of the only axis, and not counted again"
"""Noted where a measure of all axes at once repeats that of one; it is corrected as that is."""

OF_BOTH, NONE_IN_COMMON = "prompts of both", "no prompt in common"
"""In the note of two that have not sampled the same prompts: their own values are not of the same ones."""

N_PERMUTATIONS = 9_999
N_PER_HEADLINE = 100
"""More where there are many headlines: Holm multiplies the smallest p-value, half of one in all, by their number."""
_NUMBERS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class ComparedPair:
    """One measure of two systems on the same prompts.

    Attributes:
        system: Of the one.
        reference: Of the other.
        can_test: Whether the two may change places.
        note: What to say of it, such as why they may not.
        repeats: Whether it is of all axes at once where only one was measured: the very same as that axis's own.
    """

    system: Measured
    reference: Measured
    can_test: bool
    note: str
    repeats: bool

    @property
    def is_headline(self) -> bool:
        """Whether it is among the `HEADLINES`, or a score."""
        measure = self.system.measure
        return measure.metric in HEADLINES or (measure.axis == "" and measure.metric != "no_face_share")


def compare_systems(
    prompts: pd.DataFrame,
    reference: SystemFrames,
    system: SystemFrames,
    axes: Sequence[Axis],
    config: EvaluationConfig,
    calibration: pd.DataFrame | None = None,
    benchmark_axes: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """`compare_all` of one system."""
    return compare_all(prompts, reference, [system], axes, config, calibration, benchmark_axes)


def compare_all(
    prompts: pd.DataFrame,
    reference: SystemFrames,
    systems: Sequence[SystemFrames],
    axes: Sequence[Axis],
    config: EvaluationConfig,
    calibration: pd.DataFrame | None = None,
    benchmark_axes: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Differences, system minus reference, of everything `metrics.compute_metrics` measures.

    Args:
        prompts: Prompts table of all.
        reference: The system compared with.
        systems: The systems compared, the same prompts sampled by each.
        axes: The axes.
        config: Confidence; size and seed of the draws.
        calibration: As in `compute_metrics`.
        benchmark_axes: As in `compute_metrics`.

    Returns:
        The comparison table. `n` is the images of the one that has fewer, `p_value` that of the permutation test,
        `p_adjusted` Holm's over the `HEADLINES` and scores of all systems. What cannot be compared has value NaN, n 0
        and the reason in `note`; what can be compared but not tested has no p-value, and the reason.

    Raises:
        InputError: As `compute_metrics`; or when the systems were read by different classifiers.
    """
    classifiers = {name for frames in (reference, *systems) for name in frames.attributes["classifier"].unique()}
    if len(classifiers) > 1:
        raise InputError(f"the systems were read by different classifiers, {sorted(classifiers)}; read all with one")
    known = calibrated_axes(calibration, classifiers.pop(), axes, config.confidence) if classifiers else {}
    protocol = Protocol(axes, known, benchmark_axes or {})
    compared = [
        (frames.name, pairs) for frames in systems for pairs in _benchmark_pairs(prompts, reference, frames, protocol)
    ]
    headlines = [pair for _, pairs in compared for pair in pairs if pair.is_headline]
    n_headlines = sum(pair.can_test and not pair.repeats for pair in headlines)
    n_permutations = max(N_PERMUTATIONS, N_PER_HEADLINE * n_headlines - 1)
    rows, is_headline = list[dict[str, Any]](), list[bool]()
    for name, pairs in compared:
        rows += _rows(name, reference.name, pairs, n_permutations, config)
        is_headline += [pair.is_headline for pair in pairs]
    table = pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)).astype({"n": np.int64})
    repeats = np.array([pair.repeats for pair in headlines], dtype=bool)
    table.loc[is_headline, "p_adjusted"] = holm(table.loc[is_headline, "p_value"].to_numpy(), ~repeats)
    return table


def holm(p_values: FloatArray, counts: NDArray[np.bool_] | None = None) -> FloatArray:
    """Holm's step-down correction (1979): under any dependence, the chance of one false finding is at most the level.

    Args:
        p_values: `[N]`; NaN takes no part.
        counts: `[N]`; where false, the value repeats one that counts and gets what that gets; None counts all.
    """
    tested = np.isfinite(p_values)
    ordered = np.sort(p_values[tested if counts is None else tested & counts])
    steps = np.minimum(np.maximum.accumulate(ordered * np.arange(len(ordered), 0, -1)), 1.0)
    adjusted = np.full(len(p_values), np.nan)
    adjusted[tested] = steps[np.searchsorted(ordered, p_values[tested], side="right") - 1]
    return adjusted


def permutation_p_values(
    pairs: Sequence[tuple[Measure, Measure]], seed: int, n_permutations: int = N_PERMUTATIONS
) -> FloatArray:
    """The p-value of every pair (system, reference), from the same permutations; all on the same prompts, `[N]`."""
    if not pairs:
        return np.zeros(0)
    found = np.array([float(mine.replicates().mean() - other.replicates().mean()) for mine, other in pairs])
    n_prompts = pairs[0][0].terms.shape[1]
    larger, equal = np.zeros(len(pairs)), np.ones(len(pairs))
    generator = np.random.default_rng(seed)
    largest = max(np.prod(mine.terms.shape[:2]) for mine, _ in pairs)
    block = max(1, int(_NUMBERS_AT_ONCE // largest))
    for start in range(0, n_permutations, block):
        swapped = generator.integers(0, 2, (min(block, n_permutations - start), n_prompts)).astype(np.float64)
        for number, (mine, other) in enumerate(pairs):
            excess = np.abs(mine.exchanged(other, swapped)) - abs(found[number])
            # a permutation that leaves a system with nothing to measure does not speak against chance
            larger[number] += (~(excess <= 1e-12)).sum()
            equal[number] += (np.abs(excess) <= 1e-12).sum()
    # exchanging all prompts, or such as do not differ, is no other permutation
    n_differing = np.array([(mine.terms != other.terms).any(axis=(0, 2)).sum() for mine, other in pairs])
    same = 2.0 ** (1 - n_differing)
    ties = equal / (1 + n_permutations)
    return np.minimum(larger / (1 + n_permutations) + (np.maximum(ties, same) + same) / 2, 1.0)


def _benchmark_pairs(
    prompts: pd.DataFrame, reference: SystemFrames, system: SystemFrames, protocol: Protocol
) -> Iterator[list[ComparedPair]]:
    """Benchmark by benchmark."""
    labels = [label_images(prompts, frames.images, frames.attributes, protocol.axes) for frames in (system, reference)]
    both = [benchmarks(table) for table in labels]
    for benchmark in dict.fromkeys([*both[1], *both[0]]):
        sides = [table[table["benchmark"] == benchmark] for table in labels]
        yield list(_pairs(sides, (system, reference), protocol))


def _rows(
    system: str, reference: str, pairs: Sequence[ComparedPair], n_permutations: int, config: EvaluationConfig
) -> Iterator[dict[str, Any]]:
    """Of one benchmark."""
    tested = [(pair.system.measure, pair.reference.measure) for pair in pairs if pair.can_test]
    p_values = iter(permutation_p_values(tested, config.seed, n_permutations))
    for pair in pairs:
        yield _row(system, reference, pair, next(p_values) if pair.can_test else np.nan, config)


def _pairs(
    labels: Sequence[pd.DataFrame], frames: tuple[SystemFrames, SystemFrames], protocol: Protocol
) -> Iterator[ComparedPair]:
    """Every measure of either side of one benchmark; a side without images, or without it, has nothing."""
    common, note, can_test = _prompts_of_both(labels)
    found: list[dict[tuple[str, str, str], Measured]] = []
    for table, one in zip(labels, frames, strict=True):
        clusters = common or sorted(table["cluster"].unique())
        chosen = table[table["cluster"].isin(clusters)]
        measured = measure_benchmark(chosen, clusters, one, protocol) if len(chosen) else ()
        found.append({each.key: each for each in measured})
    measured_axes = {each.measure.axis for side in found for each in side.values() if each.measure.n} - {"", "all"}
    for key in dict.fromkeys([*found[1], *found[0]]):
        sides = [side.get(key) for side in found]
        mine, other = (side or _missing(sides[1 - number]) for number, side in enumerate(sides))
        if not common:
            mine = other = _missing(mine, f"not compared: {note}")
        elif mine.scorer != other.scorer:
            why = f"not compared: {frames[0].name} has {mine.scorer}, {frames[1].name} {other.scorer}"
            mine = other = _missing(mine, why)
        repeats = mine.measure.axis == "all" and len(measured_axes) == 1
        yield ComparedPair(mine, other, can_test and _is_known(mine, other), note if common else "", repeats)


def _prompts_of_both(labels: Sequence[pd.DataFrame]) -> tuple[list[str], str, bool]:
    """The prompts both sampled, what to say of it, and whether the two may change places."""
    clusters = [set(table["cluster"]) for table in labels]
    common, every = sorted(clusters[0] & clusters[1]), clusters[0] | clusters[1]
    if not common:
        return [], NONE_IN_COMMON, False
    notes = [] if len(common) == len(every) else [f"on the {len(common)} of {len(every)} {OF_BOTH}"]
    mine, other = (table[table["cluster"].isin(common)] for table in labels)
    counts = [table.groupby(["replicate", "prompt_id"]).size() for table in (mine, other)]
    if not counts[0].sort_index().equals(counts[1].sort_index()):
        return common, "; ".join([*notes, "not tested: the numbers of images or replicates differ"]), False
    keys = ["replicate", "prompt_id", "index", "seed"]
    if len(mine.merge(other[keys], on=keys)) < len(mine):
        notes.append("paired by prompt only: the seeds differ")
    return common, "; ".join(notes), True


def _is_known(mine: Measured, other: Measured) -> bool:
    return bool(np.isfinite(mine.measure.value - other.measure.value))


def _missing(measured: Measured | None, why: str = "") -> Measured:
    """In place of what a system does not have."""
    if measured is None:
        raise ValueError("one of two systems has the measure")
    old = measured.measure
    nothing = np.zeros((1, 1, 1))
    why = why or (old.why if old.n == 0 else "not compared: one of the two has none")
    measure = Measure(old.metric, old.axis, nothing, lambda sums: np.full(sums.shape[:-1], np.nan), 0, why=why)
    return Measured(measured.benchmark, measured.scorer, measure)


def _row(system: str, reference: str, pair: ComparedPair, p_value: float, config: EvaluationConfig) -> dict[str, Any]:
    mine, other = pair.system.measure, pair.reference.measure
    change = mine.change(other)
    is_known = bool(np.isfinite(change))
    notes = [note for note in (pair.note, ONLY_AXIS if pair.repeats and pair.can_test else "") if note]
    (low, high), n = NO_ENDS, min(mine.n, other.n)
    if not is_known:
        n = 0
        notes = [next(side.reason for side in (mine, other) if not np.isfinite(side.value)), *notes]
    else:
        low, high = mine.bounded_change(other, config)
        if not np.isfinite(low):
            p_value = np.nan
            notes.append(ONE_PROMPT)
    values = (change if is_known else np.nan, low, high, n, np.nan, pair.system.scorer, p_value, np.nan)
    row = (system, reference, *pair.system.key, *values, "; ".join(notes))
    return dict(zip(COMPARISON_COLUMNS, row, strict=True))
