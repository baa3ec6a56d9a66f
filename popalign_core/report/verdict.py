"""What the numbers allow to be said: improved, no clear change, worse."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from popalign_core.report.cells import NOTHING
from popalign_core.report.estimates import (
    UNKNOWN,
    WORDS,
    Estimate,
    Status,
    by_measure,
    combined,
    is_doubtful_loss,
    judge_difference,
    measures_of,
)
from popalign_core.report.measure_names import FAIRNESS, is_shown, listed, measure_name, number
from popalign_core.report.run_inputs import TwoSystems


@dataclass(frozen=True)
class Change:
    """One measure of both systems, and the paired difference."""

    benchmark: str
    metric: str
    axis: str
    base: Estimate
    aligned: Estimate
    difference: Estimate
    status: Status
    is_doubtful: bool = False
    """Not called worse only because so much is compared."""


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


def changes(inputs: TwoSystems) -> list[Change]:
    """Every measure, in the order of the metrics; what is missing of one is "not measured"."""
    values = by_measure(inputs.metrics)
    differences = {measure: estimate for (_, measure), estimate in by_measure(inputs.comparison).items()}
    result = []
    for measure in measures_of(inputs.metrics):
        base, aligned = (values.get((name, measure), UNKNOWN) for name in (inputs.base, inputs.aligned))
        difference = differences.get(measure, UNKNOWN)
        status = judge_difference(measure.metric, difference, inputs.confidence)
        is_doubtful = is_doubtful_loss(measure.metric, difference, inputs.confidence)
        result.append(Change(*measure, base, aligned, difference, status, is_doubtful))
    return result


def find_verdict(inputs: TwoSystems) -> Verdict:
    """The verdict of the page, the card and the command line, from intervals and adjusted p-values alone."""
    found = changes(inputs)
    by_axis = {axis.name: combined([change.status for change in _fairness(found, axis.name)]) for axis in inputs.axes}
    others = [change for change in found if _is_quality(change)]
    lost = [change for change in others if change.status == "worse"]
    fairer = [name for name, status in by_axis.items() if status == "improved"]
    mixed = any(status == "worse" for status in by_axis.values())
    if fairer and not mixed:
        status: Status = "improved"
        headline = f"Fairer on {listed(fairer)}" + (", at a measurable cost" if lost else "")
    elif mixed:
        status = "worse"
        headline = f"Less fair on {listed([name for name, s in by_axis.items() if s == 'worse'])}"
        headline += f"; fairer on {listed(fairer)}" if fairer else ""
    elif all(part == "unmeasured" for part in by_axis.values()):
        status, headline = "unmeasured", "Fairness cannot be judged: there is no interval, use more prompts"
    else:
        status, headline = "unclear", "No clear change in fairness" + (", and other measures got worse" if lost else "")
    sentences = [_axis_sentence(found, axis.name) for axis in inputs.axes]
    sentences += list(_quality_sentences(others))
    return Verdict(status, headline, tuple(sentence for sentence in sentences if sentence))


def _fairness(found: Sequence[Change], axis: str) -> list[Change]:
    chosen = [change for change in found if change.metric in FAIRNESS and change.axis == axis]
    return [change for change in chosen if change.benchmark == chosen[0].benchmark]  # the first that measures it


def _is_quality(change: Change) -> bool:
    plain = is_shown(change.metric) and not change.metric.startswith("discrepancy")
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
    kinds = {
        "Worse": [change for change in others if change.status == "worse"],
        "Perhaps worse (unsure only because so much is compared)": [change for change in others if change.is_doubtful],
        "Also improved": [change for change in others if change.status == "improved"],
        "No clear change": [c for c in others if c.status == "unclear" and not c.is_doubtful],
        "Not measured": [c for c in others if not (c.base.is_measured and c.aligned.is_measured)],
    }
    for lead, chosen in kinds.items():
        if not chosen:
            continue
        names = []
        for change in chosen:
            name = measure_name(change.metric, change.axis, change.benchmark)
            shift = number(change.difference.value, change.metric, signed=True)
            start = name[:1] if name[1:2].isupper() else name[:1].lower()
            names.append(f"{start}{name[1:]} {shift}".removesuffix(f" {NOTHING}"))
        yield f"{lead}: {', '.join(names)}."
