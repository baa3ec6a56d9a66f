"""What the numbers allow to be said, at the head of a page, on a card and on the command line."""

from collections.abc import Iterator

from popalign_core.config import Axis
from popalign_core.report.cells import NOTHING
from popalign_core.report.estimates import WORDS, Estimate, ReportedMeasure, Status, combined
from popalign_core.report.measure_names import FAIRNESS, is_shown, listed, number
from popalign_core.report.standings import ComparisonResults, Summary, summarise_many


def find_verdict(results: ComparisonResults) -> Summary:
    """The verdict on one system in full, on several in brief; from intervals and adjusted p-values alone."""
    return summarise_many(results) if len(results.inputs.others) > 1 else _summarise_one(results)


def _summarise_one(results: ComparisonResults) -> Summary:
    (system,) = results.inputs.others
    by_axis = {axis.name: combined(list(_fairness(results, axis.name).values())) for axis in results.inputs.axes}
    others = {measure: results.status(system, measure) for measure in results.measures if _is_quality(measure)}
    is_costly = "worse" in others.values()
    fairer = [name for name, status in by_axis.items() if status == "improved"]
    if "worse" in by_axis.values():
        status: Status = "worse"
        headline = f"Less fair on {listed([name for name, s in by_axis.items() if s == 'worse'])}"
        headline += f"; fairer on {listed(fairer)}" if fairer else ""
    elif fairer:
        status = "improved"
        headline = f"Fairer on {listed(fairer)}" + (", at a measurable cost" if is_costly else "")
    elif all(part in ("unmeasured", "untested") for part in by_axis.values()):
        status, headline = "unmeasured", "Fairness cannot be judged: there is no interval; use more prompts"
    else:
        status = "unclear"
        headline = "No clear change in fairness" + (", and other measures got worse" if is_costly else "")
    sentences = [
        pair
        for axis in results.inputs.axes
        for pair in (*_share_sentence(results, axis), *_axis_sentence(results, axis.name))
    ]
    return Summary(status, headline, (*sentences, *_quality_sentences(results, others)))


def _fairness(results: ComparisonResults, axis: str) -> dict[ReportedMeasure, Status]:
    (system,) = results.inputs.others
    chosen = [measure for measure in results.measures if measure.axis == axis and results.decides(measure)]
    return {measure: results.status(system, measure) for measure in chosen}


def _is_quality(measure: ReportedMeasure) -> bool:
    plain = is_shown(measure.metric) and not measure.metric.startswith("discrepancy")
    return plain and not (measure.metric == "no_face_share" and measure.benchmark == "specific")


def _share_sentence(results: ComparisonResults, axis: Axis) -> Iterator[tuple[str, str]]:
    """Who is shown before and after, and which class went beyond its target."""
    inputs, parts, beyond = results.inputs, [], []
    for name, target in zip(axis.classes, axis.shares(), strict=True):
        measure = ReportedMeasure(results.benchmarks.get(axis.name, ""), f"share:{name}", axis.name)
        before, after = (results.value(system, measure) for system in (inputs.reference, inputs.others[0]))
        if not (before.is_measured and after.is_measured):
            return
        parts.append(f"{name} {before.value:.0%} → {after.value:.0%}")
        if _overshoots(before.value, after, target):
            beyond.append(f"{name} went beyond its target of {target:.0%}")
    targets = [f"{share:.0%}" for share in axis.shares()]
    wanted = f"{targets[0]} each" if len(set(targets)) == 1 else " and ".join((", ".join(targets[:-1]), targets[-1]))
    shown = f"{', '.join(parts)}; the target is {wanted}"
    yield f"{axis.name[:1].upper()}{axis.name[1:]} shown", "; ".join([shown, *beyond]) + "."


def _overshoots(before: float, after: Estimate, target: float) -> bool:
    """Whether a share that was on one side of its target is, with its whole interval, on the other."""
    low, high = (end if end == end else after.value for end in (after.low, after.high))
    return (before < target < low) or (before > target > high)


def _axis_sentence(results: ComparisonResults, axis: str) -> Iterator[tuple[str, str]]:
    inputs, parts = results.inputs, []
    for measure, status in _fairness(results, axis).items():
        where = "all prompts together" if measure.metric == FAIRNESS[0] else "mean over prompts"
        before, after = (results.value(name, measure) for name in (inputs.reference, inputs.others[0]))
        parts.append(
            f"{where} {number(before.value, measure.metric)} → {number(after.value, measure.metric)} "
            f"({WORDS[status]}; a fair sampler would show {number(after.floor, measure.metric)})"
        )
    if parts:
        yield f"{axis[:1].upper()}{axis[1:]} discrepancy", "; ".join(parts) + "."


def _quality_sentences(results: ComparisonResults, others: dict[ReportedMeasure, Status]) -> Iterator[tuple[str, str]]:
    (system,) = results.inputs.others
    both = {m: [results.value(name, m).is_measured for name in results.inputs.systems] for m in others}
    kinds = {
        "Worse": [m for m, status in others.items() if status == "worse"],
        "Perhaps worse (not significant after adjusting for the number of comparisons)": [
            m for m, s in others.items() if s == "doubtful"
        ],
        "Also improved": [m for m, status in others.items() if status == "improved"],
        "No clear change": [m for m, status in others.items() if status == "unclear"],
        "Not measured": [m for m in others if not all(both[m])],
    }
    for lead, chosen in kinds.items():
        if chosen:
            yield lead, ", ".join(_with_shift(results, system, measure) for measure in chosen) + "."


def _with_shift(results: ComparisonResults, system: str, measure: ReportedMeasure) -> str:
    shift = number(results.difference(system, measure).value, measure.metric, signed=True)
    name = measure.name
    start = name[:1] if name[1:2].isupper() else name[:1].lower()
    return f"{start}{name[1:]} {shift}".removesuffix(f" {NOTHING}")
