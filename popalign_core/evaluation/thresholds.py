"""Thresholds that a model must clear, judged by the ends of its intervals: what chance may explain decides nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from popalign_core.config.evaluation import DIVERSITY
from popalign_core.errors import ConfigError
from popalign_core.evaluation.frames import QUALITY_GAP

Verdict = Literal["met", "missed", "unclear", "unmeasured"]


@dataclass(frozen=True)
class Kind:
    """What can be asked of a model.

    Attributes:
        metric: In the metrics table.
        benchmarks: Where it is looked for; the first alone, where a threshold names an axis.
        is_ceiling: Whether the value must stay below the threshold; else it must reach it.
        names: What a threshold may name before its bound.
        ends: Its least and largest possible value: a threshold beyond them would always be met, or never.
        has_all: Whether it is taken of all axes at once too, under the axis `all`.
        own_ends: By the name, ends that differ; a threshold without a name is not of these.
        without: Names where it is never measured.
    """

    metric: str
    benchmarks: tuple[str, ...]
    is_ceiling: bool
    names: Literal["axis", "benchmark", "scorer"]
    ends: tuple[float, float] = (0.0, 1.0)
    has_all: bool = False
    own_ends: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    without: tuple[str, ...] = ()


_DISTANCES = (0.0, 2**0.5)

KINDS: dict[str, Kind] = {
    "max-discrepancy": Kind("discrepancy_pooled", ("neutral",), is_ceiling=True, names="axis", ends=_DISTANCES),
    "max-per-prompt": Kind("discrepancy_per_prompt", ("neutral",), is_ceiling=True, names="axis", ends=_DISTANCES),
    "min-recall": Kind("recall", ("specific",), is_ceiling=False, names="axis", has_all=True),
    "max-no-face": Kind(
        "no_face_share", ("neutral", "specific"), is_ceiling=True, names="benchmark", without=("generic",)
    ),
    "max-no-face-gap": Kind("no_face_gap", ("specific",), is_ceiling=True, names="axis"),
    "max-quality-gap": Kind(
        QUALITY_GAP, ("specific",), is_ceiling=True, names="scorer", ends=(0.0, 200.0), own_ends={DIVERSITY: (0.0, 2.0)}
    ),
    "min-clip": Kind("clip_score", ("neutral", "generic"), is_ceiling=False, names="benchmark", ends=(-100.0, 100.0)),
}
"""By the name of the command's option."""


@dataclass(frozen=True)
class Threshold:
    """One demand.

    Attributes:
        kind: Of `KINDS`.
        bound: In the measure's own unit.
        which: An axis, a benchmark or a scorer; None for all there are.
    """

    kind: str
    bound: float
    which: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {f'{self.which}=' if self.which else ''}{self.bound:g}"


@dataclass(frozen=True)
class Judgement:
    """What became of a threshold in one row of the metrics table.

    Attributes:
        threshold: As it was asked.
        subject: Axis or benchmark of the row, or its axis and scorer.
        verdict: `met` or `missed` when the whole interval is on one side, `unclear` when the threshold lies inside it.
        value: Estimate, or None.
        ci_low: Or None.
        ci_high: Or None.
        reason: In words.
    """

    threshold: Threshold
    subject: str
    verdict: Verdict
    value: float | None
    ci_low: float | None
    ci_high: float | None
    reason: str

    def passes(self, *, strict: bool) -> bool:
        """Whether a model may go through: with `strict` only when the threshold is met for sure."""
        return self.verdict == "met" or (self.verdict == "unclear" and not strict)


@dataclass(frozen=True)
class GateOutcome:
    """What all judgements come to.

    Attributes:
        judgements: In the order of the thresholds.
        strict: Whether one that cannot be told fails too.
        lenient: Whether none of them needs to be proven.
    """

    judgements: tuple[Judgement, ...]
    strict: bool = False
    lenient: bool = False

    @property
    def failed(self) -> list[Judgement]:
        """Those that do not pass by themselves."""
        return [each for each in self.judgements if not each.passes(strict=self.strict)]

    @property
    def n_proven(self) -> int:
        """How many thresholds the whole interval is on the right side of."""
        return sum(each.verdict == "met" for each in self.judgements)

    @property
    def verdict(self) -> Literal["passed", "failed", "unproven"]:
        """`unproven` where nothing failed, but nothing was shown either: noise must not pass a gate."""
        if self.failed:
            return "failed"
        return "passed" if self.n_proven or self.lenient else "unproven"


def parse_threshold(kind: str, text: str) -> Threshold:
    """A threshold from a command-line word, `0.2` or `gender=0.2`.

    Raises:
        ConfigError: When it is neither.
    """
    which, equals, number = text.rpartition("=")
    try:
        bound = float(number)
    except ValueError:
        bound = float("nan")
    if bound != bound or (equals and not which):
        raise ConfigError(
            f"--{kind} {text!r} is not a threshold; write --{kind} 0.2, or with a name before it, gender=0.2"
        )
    return Threshold(kind, bound, which or None)


def check_thresholds(
    thresholds: Sequence[Threshold], axes: Iterable[str], benchmarks: Iterable[str], scorers: Iterable[str]
) -> None:
    """Refuse thresholds that no row can answer, before anything is run.

    Raises:
        ConfigError: When there is no threshold, or one names an axis, a benchmark or a scorer that is not there, or
            lies where no value can.
    """
    if not thresholds:
        raise ConfigError(f"there is nothing to check; set a threshold with {', '.join(f'--{kind}' for kind in KINDS)}")
    for threshold in thresholds:
        kind = KINDS[threshold.kind]
        known = {"axis": [*axes, *(["all"] if kind.has_all else [])], "benchmark": [*benchmarks], "scorer": [*scorers]}
        names = [name for name in known[kind.names] if name not in kind.without]
        if threshold.which is not None and threshold.which not in names:
            raise ConfigError(f"--{threshold.kind} names {threshold.which!r}; choose from {', '.join(names)}")
        least, largest = kind.own_ends.get(threshold.which or "", kind.ends)
        if not least <= threshold.bound <= largest:
            raise ConfigError(
                f"--{threshold.kind} {threshold.bound:g} decides nothing: {kind.metric} is between {least:g} and "
                f"{largest:.4g}; give a threshold in that range{', such as 0.05 for 5%' if largest == 1 else ''}"
            )


def judge_thresholds(threshold: Threshold, metrics: pd.DataFrame) -> list[Judgement]:
    """One judgement a row that the threshold is about; at least one.

    Args:
        threshold: What is asked.
        metrics: Metrics table of one system.
    """
    kind = KINDS[threshold.kind]
    # of classes there are rows too, METRIC:CLASS, and of axes where the measure itself has none
    names = metrics["metric"].str.partition(":")
    rows = metrics[names[0] == kind.metric] if kind.names == "scorer" else metrics[metrics["metric"] == kind.metric]
    if kind.names == "benchmark":
        rows = rows[rows["axis"] == ""]
    benchmarks = (threshold.which,) if kind.names == "benchmark" and threshold.which else kind.benchmarks
    rows = rows[rows["benchmark"].isin(benchmarks)]
    if kind.names == "axis" and threshold.which is not None:
        rows = rows[rows["axis"] == threshold.which]
    if kind.names == "scorer":
        scorers = rows["metric"].str.partition(":")[2]
        rows = rows[scorers == threshold.which if threshold.which else ~scorers.isin(list(kind.own_ends))]
    if rows.empty:
        where = " or ".join(benchmarks)
        return [
            _unmeasured(
                threshold, threshold.which or where, f"not measured: there is no {kind.metric} of {where} prompts"
            )
        ]
    return [_judge_row(threshold, row) for row in rows.to_dict("records")]


def _judge_row(threshold: Threshold, row: dict[object, object]) -> Judgement:
    kind = KINDS[threshold.kind]
    subject = str(row["benchmark"] if kind.names == "benchmark" else row["axis"])
    if kind.names == "scorer":
        subject += f" {str(row['metric']).partition(':')[2]}"
    value, low, high = (_number(row[name]) for name in ("value", "ci_low", "ci_high"))
    if value is None:
        return _unmeasured(threshold, subject, str(row.get("note") or "not measured"))
    if low is None or high is None:
        return _unmeasured(
            threshold, subject, f"{value:.3f} has no interval: a single prompt says nothing of others", value
        )
    is_met, is_missed = (
        (high <= threshold.bound, low > threshold.bound)
        if kind.is_ceiling
        else (low >= threshold.bound, high < threshold.bound)
    )
    verdict: Verdict = "met" if is_met else "missed" if is_missed else "unclear"
    words = {"met": "clears", "missed": "misses", "unclear": "may or may not clear"}
    reason = f"{value:.3f} [{low:.3f}, {high:.3f}] {words[verdict]} {threshold.bound:g}"
    return Judgement(threshold, subject, verdict, value, low, high, reason)


def _unmeasured(threshold: Threshold, subject: str, reason: str, value: float | None = None) -> Judgement:
    return Judgement(threshold, subject, "unmeasured", value, None, None, reason)


def _number(cell: object) -> float | None:
    return None if cell is None or cell != cell else float(cell)  # type: ignore[arg-type]
