"""All checkpoints ever evaluated, through time, as one HTML page."""

from collections.abc import Iterator
from html import escape

import pandas as pd

from popalign_core.errors import InputError
from popalign_core.report.cells import MOST_COLUMNS, Footnotes, estimate_cell, row, table
from popalign_core.report.document import figures, html_page, warning
from popalign_core.report.estimates import UNKNOWN, ReportedMeasure, by_measure, measures_of
from popalign_core.report.limits import few_images
from popalign_core.report.measure_names import column_name, floor_words, is_shown
from popalign_core.report.trend import trend_chart

EVALUATED_AT = "evaluated_at"
"""Column of the leaderboard: when the rows were appended, UTC, as text; absent from rows older than it."""
_HASH_DIGITS, _MINUTES = 8, len("2026-01-01T00:00")


def build_leaderboard(board: pd.DataFrame) -> str:
    """Build the page.

    Args:
        board: checkpoint, model_hash, protocol, the columns of `metrics`, and `evaluated_at` where it is known.

    Returns:
        A complete HTML document: for each protocol charts through time and a table, the newest checkpoint first.

    Raises:
        InputError: When there is no row.
    """
    if board.empty:
        raise InputError("the leaderboard has no rows; evaluate a checkpoint first with `popalign evaluate`")
    times = board[EVALUATED_AT] if EVALUATED_AT in board else pd.Series(index=board.index, dtype=object)
    rows = board.assign(evaluated_at=times.fillna("").astype(str), system=board["model_hash"])
    rows = rows.sort_values(EVALUATED_AT, kind="stable")
    n = rows["model_hash"].nunique()
    head = (
        f'<p class="soft">{n} checkpoint{"s" if n != 1 else ""}. Only numbers of one protocol (prompts, sampling, '
        "classifier, versions) compare, so each protocol has its own part; the newest comes first.</p>"
    )
    return html_page("PopAlign leaderboard", head, _protocols(rows))


def _protocols(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    newest_first = rows.groupby("protocol", sort=False)[EVALUATED_AT].max().sort_values(ascending=False, kind="stable")
    for protocol in newest_first.index:
        chosen = rows[rows["protocol"] == protocol]
        said = "".join(map(warning, few_images(chosen.to_dict("records"))))
        yield f"Protocol {protocol}", said + _charts(chosen) + _tables(chosen)


def _charts(rows: pd.DataFrame) -> str:
    values, checkpoints = by_measure(rows), list(dict.fromkeys(rows["model_hash"]))
    ticks = [str(n) for n in range(1, len(checkpoints) + 1)]
    charts = []
    for measure in _measures(rows):
        found = [values.get((checkpoint, measure), UNKNOWN) for checkpoint in checkpoints]
        if sum(e.is_measured for e in found) > 1:
            chart = trend_chart(measure.name, measure.metric, ticks, {"": found}, marked=ticks[-1])
            charts.append((measure.name, chart))
    lead = "<p>From the oldest to the newest, by the numbers of the table; the newest is full.</p>"
    return lead + figures(charts) if charts else ""


def _tables(rows: pd.DataFrame) -> str:
    values, measures, tables = by_measure(rows), _measures(rows), ""
    names = rows.drop_duplicates("model_hash")[["model_hash", "checkpoint", EVALUATED_AT]]
    numbered = list(enumerate(names.itertuples(index=False), start=1))[::-1]
    for start in range(0, len(measures), MOST_COLUMNS):
        columns, notes = measures[start : start + MOST_COLUMNS], Footnotes()
        heads = ("Checkpoint", "Weights, when (UTC)", *(_head(measure) for measure in columns))
        lines = []
        for n, (model_hash, checkpoint, when) in numbered:
            found = [values.get((model_hash, measure), UNKNOWN) for measure in columns]
            cells = [
                estimate_cell(e, m.metric, notes, more=floor_words(e.floor, m.metric))
                for e, m in zip(found, columns, strict=True)
            ]
            shown = escape(str(when)[:_MINUTES].replace("T", " ")) or "not recorded"
            about = f"{escape(str(model_hash)[:_HASH_DIGITS])} <small>{shown}</small>"
            lines.append(row(heads, f"{n} {checkpoint}", (about, *cells)))
        tables += table(heads, lines, "main") + str(notes)
    return tables


def _measures(rows: pd.DataFrame) -> list[ReportedMeasure]:
    return [m for m in measures_of(rows) if is_shown(m.metric, is_crowded=True)]


def _head(measure: ReportedMeasure) -> str:
    name = column_name(measure.metric, measure.axis)
    if measure.metric == "recall":
        return f"Recall, {name}"
    return name if measure.axis else f"{name}, {measure.benchmark}"
