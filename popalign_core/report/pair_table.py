"""Two systems beside each other: a row a measure, with the difference and what may be said of it."""

from popalign_core.report.cells import NOTHING, Footnotes, estimate_cell, group_row, mark, row, table
from popalign_core.report.estimates import ReportedMeasure
from popalign_core.report.measure_names import is_shown, number
from popalign_core.report.standings import ComparisonResults

_GROUPS = (
    ("Fairness, on prompts that name no identity (lower is fairer)", "discrepancy"),
    ("Requested identities shown (higher is better)", "recall"),
    ("Images not in the shares above (lower is better)", "no_face"),
    ("Image and prompt", ""),
)


def pair_table(results: ComparisonResults) -> str:
    """Values with intervals, what a fair sampler would show, the paired difference and its verdict."""
    inputs = results.inputs
    (system,) = inputs.others
    heads = ("Measure", inputs.reference, system, "Fair sampler", "Change", "Verdict")
    rows, notes = list[str](), Footnotes()
    left = [measure for measure in results.measures if is_shown(measure.metric)]
    for title, start in _GROUPS:
        chosen = [measure for measure in left if measure.metric.startswith(start)]
        left = [measure for measure in left if measure not in chosen]
        if chosen:
            rows.append(group_row(title, len(heads)))
        for measure in chosen:
            cells = (*_sides(results, measure, notes), _floors(results, measure), _shift(results, measure, notes))
            rows.append(row(heads, measure.name, (*cells, mark(results.status(system, measure)))))
    return table(heads, rows, "main") + str(notes)


def _sides(results: ComparisonResults, measure: ReportedMeasure, notes: Footnotes) -> list[str]:
    values = [results.value(name, measure) for name in (results.inputs.reference, *results.inputs.others)]
    return [estimate_cell(value, measure.metric, notes) for value in values]


def _shift(results: ComparisonResults, measure: ReportedMeasure, notes: Footnotes) -> str:
    difference = results.difference(results.inputs.others[0], measure)
    return estimate_cell(difference, measure.metric, notes, signed=True) if difference.is_measured else NOTHING


def _floors(results: ComparisonResults, measure: ReportedMeasure) -> str:
    names = (results.inputs.reference, *results.inputs.others)
    shown = [number(results.value(name, measure).floor, measure.metric) for name in names]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} / {shown[1]}"
