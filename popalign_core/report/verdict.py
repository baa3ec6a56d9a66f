"""What the numbers allow to be said: improved, no clear change, worse."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from popalign_core.report.inputs import ReportInputs

Status = Literal["improved", "unclear", "worse", "unmeasured"]

FAIRNESS = ("discrepancy_pooled", "discrepancy_per_prompt")
"""The two that decide: bias that pooling hides (nurse and engineer) must not count as fair."""
WORDS: dict[Status, str] = {
    "improved": "improved",
    "unclear": "no clear change",
    "worse": "worse",
    "unmeasured": "no interval",
}


@dataclass(frozen=True)
class Estimate:
    """A value with its interval (NaN where there is none), its floor (NaN) and its number of images."""

    value: float
    low: float
    high: float
    floor: float
    n: int


@dataclass(frozen=True)
class Change:
    """One measure of both systems, and the paired difference."""

    benchmark: str
    metric: str
    axis: str
    base: Estimate
    aligned: Estimate
    difference: Estimate

    @property
    def status(self) -> Status:
        """'improved' or 'worse' only when the interval of the paired difference excludes 0."""
        if not (pd.notna(self.difference.low) and pd.notna(self.difference.high)):
            return "unmeasured"
        sign = -1.0 if self.metric.startswith(("discrepancy", "no_face")) else 1.0
        low, high = sorted((sign * self.difference.low, sign * self.difference.high))
        return "improved" if low > 0 else "worse" if high < 0 else "unclear"


@dataclass(frozen=True)
class Verdict:
    """The head of the report.

    Attributes:
        status: Of the whole.
        headline: A few words.
        sentences: What holds it up, the most important first.
    """

    status: Status
    headline: str
    sentences: tuple[str, ...]


def changes(inputs: ReportInputs) -> list[Change]:
    """Every measure that both systems and the comparison have, in the order of the comparison."""
    keys = ["benchmark", "metric", "axis"]
    systems = [
        inputs.metrics[inputs.metrics["system"] == name].set_index(keys) for name in (inputs.base, inputs.aligned)
    ]
    difference = inputs.comparison.set_index(keys)
    shared = [key for key in difference.index if all(key in system.index for system in systems)]
    return [Change(*key, *(_estimate(table.loc[key]) for table in (*systems, difference))) for key in shared]


def judge(inputs: ReportInputs) -> Verdict:
    """The verdict, from intervals alone."""
    found = changes(inputs)
    by_axis = {axis.name: _combined(_fairness(found, axis.name)) for axis in inputs.axes}
    others = [change for change in found if _is_quality(change)]
    lost = [change for change in others if change.status == "worse"]
    fairer = [name for name, status in by_axis.items() if status == "improved"]
    mixed = any(status == "worse" for status in by_axis.values())
    if fairer and not mixed:
        status: Status = "improved"
        headline = f"Fairer on {_listed(fairer)}" + (", at a measurable cost" if lost else "")
    elif mixed:
        status = "worse"
        headline = f"Less fair on {_listed([name for name, s in by_axis.items() if s == 'worse'])}"
        headline += f"; fairer on {_listed(fairer)}" if fairer else ""
    elif all(part == "unmeasured" for part in by_axis.values()):
        status, headline = "unmeasured", "Fairness cannot be judged: there is no interval, use more prompts"
    else:
        status, headline = "unclear", "No clear change in fairness" + (", and other measures got worse" if lost else "")
    sentences = [_axis_sentence(found, axis.name) for axis in inputs.axes]
    sentences += list(_quality_sentences(others))
    return Verdict(status, headline, tuple(sentence for sentence in sentences if sentence))


def measure_name(metric: str, axis: str, benchmark: str) -> str:
    """A measure's name in words."""
    known = {
        "discrepancy_pooled": f"{axis} discrepancy, all prompts together",
        "discrepancy_per_prompt": f"{axis} discrepancy, mean over prompts",
        "discrepancy_worst10": f"{axis} discrepancy, ten worst prompts",
        "discrepancy_corrected": f"{axis} discrepancy, corrected for classifier error",
        "discrepancy_joint": "discrepancy of all attributes jointly",
        "recall": "recall of everything asked for" if axis == "all" else f"recall of {axis}",
        "no_face_share": f"images without a usable face ({benchmark} prompts)",
        "clip_score": f"CLIP score ({benchmark} prompts)",
        "subject_accuracy": "right object shown (zero-shot)",
    }
    name = known.get(metric, f"{metric.replace('_', ' ')} ({benchmark} prompts)")
    return name[:1].upper() + name[1:]


def number(value: float, metric: str, *, signed: bool = False) -> str:
    """A value as its measure is read: percent for shares, three digits for discrepancies, two for scores."""
    if pd.isna(value):
        return "–"
    sign = "+" if signed else ""
    if metric.startswith(("recall", "share", "no_face", "subject_accuracy")):
        text = f"{100 * value:{sign}.1f}" + (" pts" if signed else "%")
    else:
        text = f"{value:{sign}.{3 if metric.startswith('discrepancy') else 2}f}"
    zero = not text.strip("+-0.% pts")
    return text.lstrip("+-") if zero else text.replace("-", "−")


def _estimate(row: "pd.Series[float]") -> Estimate:
    low, high = (float("nan") if pd.isna(row[end]) else float(row[end]) for end in ("ci_low", "ci_high"))
    floor = float("nan") if pd.isna(row["floor"]) else float(row["floor"])
    return Estimate(float(row["value"]), low, high, floor, int(row["n"]))


def _fairness(found: Sequence[Change], axis: str) -> list[Change]:
    return [change for change in found if change.metric in FAIRNESS and change.axis == axis]


def _combined(parts: Sequence[Change]) -> Status:
    statuses = [change.status for change in parts]
    for status in ("worse", "improved", "unclear"):
        if status in statuses:
            return status
    return "unmeasured"


def _is_quality(change: Change) -> bool:
    plain = ":" not in change.metric and not change.metric.startswith("discrepancy")
    return plain and not (change.metric == "no_face_share" and change.benchmark == "specific")


def _axis_sentence(found: Sequence[Change], axis: str) -> str:
    parts = []
    for change in _fairness(found, axis):
        where = "all prompts together" if change.metric == FAIRNESS[0] else "mean over prompts"
        parts.append(
            f"{where} {number(change.base.value, change.metric)} → {number(change.aligned.value, change.metric)} "
            f"({WORDS[change.status]}; a fair sampler would show {number(change.aligned.floor, change.metric)})"
        )
    return f"{axis[:1].upper()}{axis[1:]} discrepancy: " + "; ".join(parts) + "." if parts else ""


def _quality_sentences(others: Sequence[Change]) -> Iterator[str]:
    for status, lead in (("worse", "Worse"), ("improved", "Also improved"), ("unclear", "No clear change")):
        chosen = [change for change in others if change.status == status]
        if not chosen:
            continue
        names = []
        for change in chosen:
            name = measure_name(change.metric, change.axis, change.benchmark)
            shift = number(change.difference.value, change.metric, signed=True)
            names.append(f"{name[:1].lower() if not name.startswith('CLIP') else name[:1]}{name[1:]} {shift}")
        yield f"{lead}: {', '.join(names)}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
