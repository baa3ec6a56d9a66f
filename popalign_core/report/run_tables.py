"""The tables of the page."""

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from popalign_core.config import Axis
from popalign_core.report.cells import NOTHING, Footnotes, estimate_cell, group_row, mark, p_cell, row, table
from popalign_core.report.estimates import BETWEEN_CLASSIFIERS, UNKNOWN, estimate_of
from popalign_core.report.measure_names import direction, is_shown, measure_name, number
from popalign_core.report.run_inputs import ReportInputs
from popalign_core.report.verdict import Change

_GROUPS = (
    ("Fairness, on prompts that name no identity (lower is fairer)", "discrepancy"),
    ("Identities asked for and shown (higher is better)", "recall"),
    ("Images that the shares above leave out (lower is better)", "no_face"),
    ("Picture and prompt", ""),
)


def main_table(found: Sequence[Change], inputs: ReportInputs) -> str:
    """Base beside aligned, with intervals, floors and what may be said of the difference."""
    heads = ("Measure", inputs.base, inputs.aligned, "Fair sampler", "Change", "Verdict")
    rows, notes = list[str](), Footnotes()
    left = [change for change in found if is_shown(change.metric)]
    for title, start in _GROUPS:
        chosen = [change for change in left if change.metric.startswith(start)]
        left = [change for change in left if change not in chosen]
        if chosen:
            rows.append(group_row(title, len(heads)))
        for change in chosen:
            cells = (*_sides(change, notes), _floors(change), _shift(change, notes), mark(change.status))
            rows.append(row(heads, _name(change), cells))
    return table(heads, rows, "main") + str(notes)


def recall_table(found: Sequence[Change], inputs: ReportInputs) -> str:
    """Recall of every class; '' when there is none."""
    heads = ("Asked for", inputs.base, inputs.aligned, "Change", "Verdict")
    rows, notes = list[str](), Footnotes()
    for change in found:
        if change.metric.startswith("recall:"):
            name = f"{change.axis}: {change.metric.removeprefix('recall:')}"
            rows.append(row(heads, name, (*_sides(change, notes), _shift(change, notes), mark(change.status))))
    return table(heads, rows) + str(notes)


def full_table(found: Sequence[Change], inputs: ReportInputs) -> str:
    """Every measure there is, with adjusted p-values and notes."""
    heads = ("Measure", inputs.base, inputs.aligned, "Fair sampler", "Change", "p, adjusted", "Verdict", "Notes")
    rows = []
    for change in found:
        notes = "; ".join(dict.fromkeys(e.note for e in (change.base, change.aligned, change.difference) if e.note))
        footnotes = Footnotes()  # the last column has the notes in full
        said = mark(change.status) if direction(change.metric) else NOTHING
        cells = (_floors(change), _shift(change, footnotes), p_cell(change.difference.p_adjusted), said)
        rows.append(row(heads, _name(change), (*_sides(change, footnotes), *cells, escape(notes) or NOTHING)))
    return table(heads, rows, "full")


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


def by_prompt_table(per_prompt: pd.DataFrame, axis: Axis, inputs: ReportInputs) -> str:
    """Every prompt of one axis, the most biased under the base first."""
    heads = ("Prompt", inputs.base, inputs.aligned)
    chosen = per_prompt[per_prompt["axis"] == axis.name]
    sides = {name: chosen[chosen["system"] == name].set_index("prompt_id") for name in (inputs.base, inputs.aligned)}
    rows = []
    for prompt_id in sides[inputs.base].sort_values("discrepancy", ascending=False).index:
        cells = [_prompt_cell(side.loc[prompt_id]) for side in sides.values()]
        rows.append(row(heads, str(sides[inputs.base].loc[prompt_id, "text"]), cells))
    return table(heads, rows)


def left_out_table(attributes: Mapping[str, pd.DataFrame], drops: pd.DataFrame) -> str:
    """What was left out, where and why."""
    heads = ("Where", "Reason", "Count")
    counted = zip(drops["stage"], drops["reason"], drops["n"], strict=True)
    rows = [row(heads, str(stage), (_reason(str(reason)), f"{n:,}")) for stage, reason, n in counted]
    for system, frame in attributes.items():
        reasons = frame.dropna(subset=["drop_reason"]).groupby("drop_reason")["image_id"].nunique()
        total = frame["image_id"].nunique()
        where = f"evaluation of {system}"
        for reason, n in reasons.items():
            rows.append(row(heads, where, (_reason(str(reason)), f"{n:,} of {total:,} images")))
        if reasons.empty:
            rows.append(row(heads, where, ("nothing dropped", f"0 of {total:,} images")))
    return table(heads, rows)


def _name(change: Change) -> str:
    return measure_name(change.metric, change.axis, change.benchmark)


def _sides(change: Change, notes: Footnotes) -> list[str]:
    return [estimate_cell(side, change.metric, notes) for side in (change.base, change.aligned)]


def _shift(change: Change, notes: Footnotes) -> str:
    shown = change.difference.is_measured
    return estimate_cell(change.difference, change.metric, notes, signed=True) if shown else NOTHING


def _floors(change: Change) -> str:
    shown = [number(e.floor, change.metric) for e in (change.base, change.aligned)]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} / {shown[1]}"


def _prompt_cell(found: "pd.Series[float]") -> str:
    if pd.isna(found["discrepancy"]):
        return f"no face in {found['n_images']} images"
    leading = f"{found['leading_share']:.0%} {escape(str(found['leading']))}"
    return f"<b>{found['discrepancy']:.2f}</b> <small>{leading}, n = {found['n']}</small>"


def _reason(reason: str) -> str:
    return escape(reason.replace("_", " "))
