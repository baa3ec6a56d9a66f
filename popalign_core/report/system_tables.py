"""The tables of a comparison: a row a system, a column a measure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import pandas as pd

from popalign_core.config import Axis
from popalign_core.report.by_prompt import axis_rows
from popalign_core.report.cells import (
    MOST_COLUMNS,
    NOTHING,
    Footnotes,
    estimate_cell,
    group_row,
    mark,
    p_cell,
    row,
    table,
)
from popalign_core.report.comparison_inputs import ComparisonInputs
from popalign_core.report.estimates import (
    BETWEEN_CLASSIFIERS,
    UNKNOWN,
    WORDS,
    Estimate,
    ReportedMeasure,
    Status,
    combined,
    estimate_of,
    has_tests,
    judge_difference,
)
from popalign_core.report.measure_names import column_name, floor_words, number, p_words, scorer_name
from popalign_core.report.standings import ComparisonResults, Standing

_BETTER: dict[Status, str] = WORDS | {"improved": "better", "unclear": "unclear"}
_DISCREPANCY = "Discrepancy, of all prompts together and the mean over prompts: lower is fairer"
_FAIRER: dict[Status, str] = _BETTER | {"improved": "fairer", "doubtful": "perhaps less fair", "worse": "less fair"}


def glance_table(results: ComparisonResults, standings: Sequence[Standing]) -> str:
    """One row a system: fairer on which axis, and at what cost."""
    axes = [axis.name for axis in results.axes]
    fairness = (f"{axis[:1].upper()}{axis[1:]} fairness" for axis in axes)
    heads = ("System", *fairness, "Recall", "Quality", "No usable face")
    rows = []
    for standing in standings:
        cells = [mark(standing.axes[axis], _FAIRER) + _shift(results, standing.system, axis) for axis in axes]
        rows.append(row(heads, standing.system, [*cells, *_others(results, standing.system)]))
    return table(heads, rows, "glance")


def benchmark_tables(results: ComparisonResults, benchmark: str) -> Iterator[tuple[str, str]]:
    """(caption, table) of fairness, recall and quality on one benchmark, as far as they were measured there."""
    measures = [m for m in results.headlines if m.benchmark == benchmark]
    chosen = {
        _DISCREPANCY: [m for m in measures if m.metric.startswith("discrepancy")],
        "Recall: the share of images that show the requested identity": [m for m in measures if m.metric == "recall"],
        "Quality": [m for m in measures if not m.metric.startswith(("discrepancy", "recall"))],
    }
    for caption, columns in chosen.items():
        for start in range(0, len(columns), MOST_COLUMNS):
            yield caption, _measure_table(results, columns[start : start + MOST_COLUMNS])


def class_recall_tables(results: ComparisonResults, benchmark: str) -> str:
    """Recall of every class of every axis on one benchmark; '' when there is none."""
    columns = [m for m in results.measures if m.metric.startswith("recall:") and m.benchmark == benchmark]
    starts = range(0, len(columns), MOST_COLUMNS)
    return "".join(_measure_table(results, columns[start : start + MOST_COLUMNS]) for start in starts)


def systems_table(results: ComparisonResults) -> str:
    """Every number, with the difference to the reference, its adjusted p-value and the notes."""
    heads = ("System", "Value", "Fair sampler", "Images", "Minus reference", "p, adjusted", "Notes")
    rows, footnotes = [], Footnotes()  # the last column has the notes in full
    for measure in results.measures:
        rows.append(group_row(measure.name, len(heads)))
        for system in results.inputs.systems:
            value, shift = results.value(system, measure), results.difference(system, measure)
            rows.append(row(heads, system, _full_cells(value, shift, measure.metric, footnotes)))
    return table(heads, rows, "full")


def win_tables(inputs: ComparisonInputs) -> str:
    """How often each scorer prefers a system's picture to the reference's for the same prompt and seed."""
    columns = list(inputs.wins.groupby(["benchmark", "scorer", "version"], sort=False))
    tables = ""
    for start in range(0, len(columns), MOST_COLUMNS):
        names, groups = zip(*columns[start : start + MOST_COLUMNS], strict=True)
        heads = ("System", *(f"{scorer_name(scorer)} {version}, {benchmark}" for benchmark, scorer, version in names))
        found = [group.set_index("system") for group in groups]
        rows = [row(heads, name, [_win_cell(group, name, inputs) for group in found]) for name in inputs.others]
        tables += table(heads, rows, "main")
    n_tested = int(inputs.wins["p_adjusted"].notna().sum())
    note = f"<p>The p-values are adjusted for the {n_tested} win rates tested here (Holm); the intervals are not.</p>"
    return tables + (note if n_tested else "")


def drop_table(drops: pd.DataFrame) -> str:
    """Evaluation images that no share is read off, by system and reason."""
    heads = ("System", "Reason", "Images")
    return table(heads, [
        row(heads, str(line.system), (escape(str(line.reason).replace("_", " ")), f"{line.n:,} of {line.n_images:,}"))
        for line in drops.itertuples()
    ])  # fmt: skip


def agreement_table(metrics: pd.DataFrame) -> str:
    """What two classifiers make of the same images; '' when there was one."""
    heads = ("System", "Classifiers", "Axis", "Read alike", "Beyond chance (kappa)", "Images")
    chosen = metrics[metrics["metric"].isin(BETWEEN_CLASSIFIERS)]
    rows, notes = [], Footnotes()
    for (system, scorer, axis), group in chosen.groupby(["system", "scorer", "axis"], sort=False):
        found = {metric: estimate_of(line) for metric, (_, line) in zip(group["metric"], group.iterrows(), strict=True)}
        both = [found.get(metric, UNKNOWN) for metric in BETWEEN_CLASSIFIERS]
        cells = [estimate_cell(e, metric, notes) for e, metric in zip(both, BETWEEN_CLASSIFIERS, strict=True)]
        rows.append(row(heads, str(system), (escape(str(scorer)), escape(str(axis)), *cells, f"{both[0].n:,}")))
    return table(heads, rows) + str(notes)


def cost_table(costs: pd.DataFrame) -> str:
    """What each system costs, a column a kind of cost."""
    kinds = list(dict.fromkeys(zip(costs["what"], costs["unit"], strict=True)))
    heads = ("System", *(f"{what} ({unit})" if unit else str(what) for what, unit in kinds))
    rows = []
    for system, group in costs.groupby("system", sort=False):
        found = dict(zip(zip(group["what"], group["unit"], strict=True), group["value"].tolist(), strict=True))
        cells = [_amount(found[kind]) if kind in found else NOTHING for kind in kinds]
        rows.append(row(heads, str(system), cells))
    return table(heads, rows)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"  # .4g has 12,960 images as 1.296e+04


def prompt_tables(inputs: ComparisonInputs, axis: Axis) -> str:
    """Discrepancy of every prompt under every system, the most biased under the reference first."""
    chosen = axis_rows(inputs.per_prompt, axis)
    wide = chosen.pivot(index=["prompt_id", "text"], columns="system", values="discrepancy").reset_index()
    lines = wide.sort_values([inputs.reference, "text"], ascending=[False, True]).to_dict("records")
    found = {(each.system, each.prompt_id): each for each in chosen.itertuples()}
    tables = ""
    for start in range(0, len(inputs.systems), MOST_COLUMNS):
        shown = inputs.systems[start : start + MOST_COLUMNS]
        rows = [
            row(("", *shown), str(line["text"]), [_prompt_cell(found.get((name, line["prompt_id"]))) for name in shown])
            for line in lines
        ]
        tables += table(("Prompt", *shown), rows)
    return tables


def _prompt_cell(found: Any) -> str:
    """The discrepancy, and which class leads."""
    if found is None:
        return NOTHING
    if pd.isna(found.discrepancy):
        return f"no face in {found.n_images} images"
    leading = f"{found.leading_share:.0%} {escape(str(found.leading))}"
    return f"<b>{found.discrepancy:.2f}</b> <small>{leading}, n = {found.n}</small>"


_WINS: dict[Status, str] = _BETTER | {
    "improved": "preferred",
    "doubtful": "perhaps not preferred",
    "worse": "not preferred",
}


def _measure_table(results: ComparisonResults, columns: Sequence[ReportedMeasure]) -> str:
    if not columns:
        return ""
    heads = ("System", *(column_name(m.metric, m.axis) for m in columns))
    notes = Footnotes()
    rows = [
        row(heads, system, [_measure_cell(results, system, measure, notes) for measure in columns])
        for system in results.inputs.systems
    ]
    return table(heads, rows, "main") + str(notes)


def _measure_cell(results: ComparisonResults, system: str, measure: ReportedMeasure, notes: Footnotes) -> str:
    value, shift = results.value(system, measure), results.difference(system, measure)
    words = _FAIRER if measure.metric.startswith("discrepancy") else _BETTER
    said = mark(results.status(system, measure), words) if shift.is_measured else ""
    about_shift = [part for part in shift.note.split("; ") if part not in value.note]
    if shift is not UNKNOWN and any(about_shift):
        # the mark is of the prompts of both alone, which the value beside it need not be
        compared = f"against {results.inputs.reference}: {'; '.join(about_shift)}"
        value = replace(value, note="; ".join(filter(None, (value.note, compared))))
    more = floor_words(value.floor, measure.metric)
    return estimate_cell(value, measure.metric, notes, said=said, more=more)


def _win_cell(group: pd.DataFrame, system: str, inputs: ComparisonInputs) -> str:
    if system not in group.index:
        return NOTHING
    found: dict[Any, Any] = group.loc[system].to_dict()
    rate = Estimate(found["win_rate"], found["ci_low"], found["ci_high"])
    # the p-value beside it must not say otherwise
    over_half = Estimate(rate.value - 0.5, rate.low - 0.5, rate.high - 0.5, p_adjusted=found["p_adjusted"])
    said = mark(judge_difference("win_rate", over_half, inputs.confidence, tested=has_tests(inputs.wins)), _WINS)
    more = f"; of {found['n']:,}, ties {found['n_ties']:,}; {p_words(found['p_adjusted'])}"
    return estimate_cell(rate, "win_rate", Footnotes(), said=said, more=more)


def _full_cells(value: Estimate, shift: Estimate, metric: str, footnotes: Footnotes) -> tuple[str, ...]:
    notes = value.note if not shift.is_measured else "; ".join(dict.fromkeys(filter(None, (value.note, shift.note))))
    change = estimate_cell(shift, metric, footnotes, signed=True) if shift.is_measured else NOTHING
    floor = number(value.floor, metric)
    cells = (estimate_cell(value, metric, footnotes), floor, f"{value.n:,}", change, p_cell(shift.p_adjusted))
    return (*cells, escape(notes) or NOTHING)


def _shift(results: ComparisonResults, system: str, axis: str) -> str:
    measure = next(m for m in results.fairness if m.axis == axis)
    both = (results.value(name, measure).value for name in (results.inputs.reference, system))
    return f" <small>{' → '.join(number(value, measure.metric) for value in both)}</small>"


def _others(results: ComparisonResults, system: str) -> Iterator[str]:
    groups = {
        "recall": [m for m in results.headlines if m.metric == "recall"],
        "quality": [m for m in results.headlines if not m.metric.startswith(("discrepancy", "recall", "no_face"))],
        "faces": [
            m for m in results.headlines if m.metric == "no_face_share" and m.benchmark in results.benchmarks.values()
        ],
    }
    for measures in groups.values():
        found = {m: results.status(system, m) for m in measures}
        whole = combined(list(found.values()))
        listed = [m for m, status in found.items() if status == whole and whole in ("improved", "worse")]
        shown = "; ".join(
            f"{_place(m)} {number(results.difference(system, m).value, m.metric, signed=True)}".strip() for m in listed
        )
        yield mark(whole, _BETTER) + (f" <small>{escape(shown)}</small>" if shown else "")


def _place(measure: ReportedMeasure) -> str:
    if measure.metric == "recall":
        return measure.axis
    return "" if measure.metric == "no_face_share" else f"{scorer_name(measure.metric)}, {measure.benchmark}"
