"""Rows of `metrics` and `comparison` as values, and what a difference allows to be said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd

from popalign_core.errors import InputError
from popalign_core.report.measure_names import FAIRNESS, direction, measure_name, number

Status = Literal["improved", "unclear", "doubtful", "worse", "untested", "unmeasured"]
"""What may be said of a difference. `doubtful` would be worse had it been the only thing compared; `untested` has no
p-value where others of the same table have one, so that nothing adjusts it for their number."""

WORDS: dict[Status, str] = {
    "improved": "improved",
    "unclear": "no clear change",
    "doubtful": "perhaps worse",
    "worse": "worse",
    "untested": "not tested",
    "unmeasured": "no interval",
}
SYMBOLS: dict[Status, str] = {
    "improved": "✔", "unclear": "≈", "doubtful": "≈", "worse": "✖", "untested": "–", "unmeasured": "–",
}  # fmt: skip

BETWEEN_CLASSIFIERS = ("agreement", "kappa")
"""Measures of two classifiers on the same images; a table may hold them for several pairs."""


class ReportedMeasure(NamedTuple):
    """What is measured: the columns of a metrics table that name it."""

    benchmark: str
    metric: str
    axis: str

    @property
    def name(self) -> str:
        """In words."""
        return measure_name(self.metric, self.axis, self.benchmark)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval (NaN where there is none), its floor (NaN), its number of images and what to note.

    The value is NaN where nothing could be measured; `note` then says why.
    """

    value: float
    low: float
    high: float
    floor: float = float("nan")
    n: int = 0
    note: str = ""
    p_adjusted: float = float("nan")

    @property
    def is_measured(self) -> bool:
        """Whether there is a value."""
        return self.value == self.value


_NAN = float("nan")
UNKNOWN = Estimate(_NAN, _NAN, _NAN, note="not measured: the tables have no such row")
ORIGIN = Estimate(_NAN, _NAN, _NAN, note="not measured: it is the distance from this system's images")


def measures_of(table: pd.DataFrame) -> list[ReportedMeasure]:
    """Every measure of one system, in the order of the table."""
    return list(dict.fromkeys(_measures(_of_one_classifier(table))))


def deciding_benchmarks(measures: Sequence[ReportedMeasure]) -> dict[str, str]:
    """Axis to the benchmark whose discrepancies decide how fair a system is on it: the first that measures it."""
    found = [m for m in measures if m.metric in FAIRNESS]
    return {m.axis: m.benchmark for m in reversed(found)}


def by_measure(table: pd.DataFrame) -> dict[tuple[str, ReportedMeasure], Estimate]:
    """(system, measure) to what was measured."""
    rows = _of_one_classifier(table)
    keys = zip(rows["system"], _measures(rows), strict=True)
    return {key: estimate_of(row) for key, (_, row) in zip(keys, rows.iterrows(), strict=True)}


def estimate_of(row: "pd.Series[float]") -> Estimate:
    """One row; columns that a table lacks are unknown."""
    known = {name: row[name] for name in row.index if pd.notna(row[name])}
    value, low, high, floor, p_adjusted = (
        float(known.get(name, "nan")) for name in ("value", "ci_low", "ci_high", "floor", "p_adjusted")
    )
    return Estimate(value, low, high, floor, int(row["n"]), str(known.get("note", "")), p_adjusted)


def has_tests(table: pd.DataFrame) -> bool:
    """Whether any row of a `comparison` or `wins` table has an adjusted p-value."""
    return "p_adjusted" in table and bool(table["p_adjusted"].notna().any())


def judge_difference(metric: str, difference: Estimate, confidence: float, *, tested: bool) -> Status:
    """The one rule of all pages, cards and lines.

    Args:
        metric: Says which way is better.
        difference: With its interval and, where there is one, its adjusted p-value.
        confidence: Of the intervals; p-values are compared with what is left of 1.
        tested: Whether its table has p-values (`has_tests`): then a difference without one is not judged. A table
            without any is judged by its intervals.

    Returns:
        `improved` or `worse` only when the interval excludes 0 and the p-value, in a table that has them, agrees.
    """
    if pd.isna(difference.low) or pd.isna(difference.high):
        return "unmeasured"
    if tested and pd.isna(difference.p_adjusted):
        return "untested"
    sign = direction(metric)
    low, high = sorted((sign * difference.low, sign * difference.high))
    if difference.p_adjusted >= 1 - confidence:
        return "doubtful" if high < 0 else "unclear"
    return "improved" if low > 0 else "worse" if high < 0 else "unclear"


def combined(statuses: Sequence[Status]) -> Status:
    """Of several: worse if any is, else improved if any is."""
    order: tuple[Status, ...] = ("worse", "improved", "doubtful", "unclear", "untested")
    return next((status for status in order if status in statuses), "unmeasured")


def check_scorers(metrics: pd.DataFrame) -> None:
    """Refuse a measure that two scorers, or two versions of one, have measured: their values do not compare.

    Raises:
        InputError: Names the measure and the scorers.
    """
    rows = _of_one_classifier(metrics[metrics["value"].notna()])
    for _, group in rows.groupby(list(ReportedMeasure._fields), sort=False):
        scorers = sorted(group["scorer"].unique())
        if len(scorers) > 1:
            raise InputError(
                f"{_measures(group)[0].name!r} was measured by {scorers}; measure all systems with one of them"
            )


def interval_words(estimate: Estimate, metric: str, *, signed: bool = False) -> str:
    """The interval, as '0.1 to 0.2'; '' where there is none."""
    if pd.isna(estimate.low):
        return ""
    both = (number(end, metric, signed=signed) for end in (estimate.low, estimate.high))
    return " to ".join(end.removesuffix(" pts").removesuffix("%") for end in both)


def _of_one_classifier(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["metric"].isin(BETWEEN_CLASSIFIERS)]


def _measures(rows: pd.DataFrame) -> list[ReportedMeasure]:
    return [ReportedMeasure(*row) for row in rows[list(ReportedMeasure._fields)].itertuples(index=False)]
