"""The tables of the page."""

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from popalign_core.config import Axis
from popalign_core.report.inputs import ReportInputs
from popalign_core.report.verdict import WORDS, Change, Estimate, Status, measure_name, number

SYMBOLS: dict[Status, str] = {"improved": "✔", "unclear": "≈", "worse": "✖", "unmeasured": "–"}

NOTHING = "–"
EMPTY = ' class="none"'
"""Left out where there is no room for cells that say nothing."""

_GROUPS = (
    ("Fairness, on prompts that name no identity (lower is fairer)", "neutral", "discrepancy"),
    ("Identities asked for and shown (higher is better)", "specific", "recall"),
    ("Images that the shares above leave out (lower is better)", "", "no_face"),
    ("Picture and prompt (higher is better)", "", ""),
)


def main_table(found: Sequence[Change], inputs: ReportInputs) -> str:
    """Base beside aligned, with intervals, floors and what may be said of the difference."""
    heads = ("Measure", inputs.base, inputs.aligned, "Fair sampler", "Change", "Verdict")
    rows, used = [], set()
    for title, benchmark, start in _GROUPS:
        chosen = [c for c in found if id(c) not in used and _in_group(c, benchmark, start)]
        used |= {id(change) for change in chosen}
        if chosen:
            rows.append(f'<tr class="group"><th colspan="6" scope="rowgroup">{escape(title)}</th></tr>')
            rows += [_change_row(change, heads) for change in chosen]
    return _table(heads, rows, "main")


def recall_table(found: Sequence[Change], inputs: ReportInputs) -> str:
    """Recall of every class; '' when there is none."""
    heads = ("Asked for", inputs.base, inputs.aligned, "Change", "Verdict")
    rows = []
    for change in found:
        if change.metric.startswith("recall:"):
            name = f"{change.axis}: {change.metric.removeprefix('recall:')}"
            cells = (_estimate(change.base, "recall"), _estimate(change.aligned, "recall"))
            rows.append(_row(heads, name, (*cells, _shift(change), _mark(change.status))))
    return _table(heads, rows) if rows else ""


def prompt_table(per_prompt: pd.DataFrame, axis: Axis, inputs: ReportInputs) -> str:
    """Every prompt of one axis, the most biased under the base first."""
    heads = ("Prompt", inputs.base, inputs.aligned)
    chosen = per_prompt[per_prompt["axis"] == axis.name]
    sides = {name: chosen[chosen["system"] == name].set_index("prompt_id") for name in (inputs.base, inputs.aligned)}
    rows = []
    for prompt_id in sides[inputs.base].sort_values("discrepancy", ascending=False).index:
        cells = [_prompt_cell(side.loc[prompt_id]) for side in sides.values()]
        rows.append(_row(heads, str(sides[inputs.base].loc[prompt_id, "text"]), cells))
    return _table(heads, rows)


def drops_table(attributes: Mapping[str, pd.DataFrame], drops: pd.DataFrame) -> str:
    """What was left out, where and why."""
    heads = ("Where", "Reason", "Count")
    counted = zip(drops["stage"], drops["reason"], drops["n"], strict=True)
    rows = [_row(heads, str(stage), (_reason(str(reason)), f"{n:,}")) for stage, reason, n in counted]
    for system, frame in attributes.items():
        reasons = frame.dropna(subset=["drop_reason"]).groupby("drop_reason")["image_id"].nunique()
        total = frame["image_id"].nunique()
        where = f"evaluation of {system}"
        for reason, n in reasons.items():
            rows.append(_row(heads, where, (_reason(str(reason)), f"{n:,} of {total:,} images")))
        if reasons.empty:
            rows.append(_row(heads, where, ("nothing dropped", f"0 of {total:,} images")))
    return _table(heads, rows)


def _in_group(change: Change, benchmark: str, start: str) -> bool:
    shown = ":" not in change.metric and change.metric != "discrepancy_unbiased"
    return shown and change.benchmark.startswith(benchmark) and change.metric.startswith(start)


def _change_row(change: Change, heads: Sequence[str]) -> str:
    cells = (
        _estimate(change.base, change.metric),
        _estimate(change.aligned, change.metric),
        _floors(change),
        _shift(change),
        _mark(change.status),
    )
    return _row(heads, measure_name(change.metric, change.axis, change.benchmark), cells)


def _estimate(estimate: Estimate, metric: str) -> str:
    return f"<b>{number(estimate.value, metric)}</b>{_range(estimate, metric)}"


def _shift(change: Change) -> str:
    metric = change.metric
    shown = number(change.difference.value, metric, signed=True)
    return f"{shown}{_range(change.difference, metric, signed=True)}"


def _range(estimate: Estimate, metric: str, *, signed: bool = False) -> str:
    if pd.isna(estimate.low):
        return ""
    ends = (
        number(end, metric, signed=signed).removesuffix(" pts").removesuffix("%")
        for end in (estimate.low, estimate.high)
    )
    return f" <small>{' to '.join(ends)}</small>"


def _floors(change: Change) -> str:
    shown = [number(e.floor, change.metric) for e in (change.base, change.aligned)]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} / {shown[1]}"


def _mark(status: Status) -> str:
    return f'<span class="mark {status}"><i aria-hidden="true">{SYMBOLS[status]}</i> {WORDS[status]}</span>'


def _prompt_cell(row: "pd.Series[float]") -> str:
    if pd.isna(row["discrepancy"]):
        return f"no face in {row['n_images']} images"
    leading = f"{row['leading_share']:.0%} {escape(str(row['leading']))}"
    return f"<b>{row['discrepancy']:.2f}</b> <small>{leading}, n = {row['n']}</small>"


def _reason(reason: str) -> str:
    return escape(reason.replace("_", " "))


def _row(heads: Sequence[str], name: str, cells: Sequence[str]) -> str:
    data = "".join(
        f'<td data-label="{escape(head)}"{EMPTY if cell == NOTHING else ""}>{cell}</td>'
        for head, cell in zip(heads[1:], cells, strict=True)
    )
    return f'<tr><th scope="row">{escape(name)}</th>{data}</tr>'


def _table(heads: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
