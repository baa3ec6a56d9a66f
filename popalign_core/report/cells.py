"""What tables are put together from: cells with intervals, marks that need no colour, footnotes."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import pandas as pd

from popalign_core.report.estimates import SYMBOLS, WORDS, Estimate, Status, interval_words
from popalign_core.report.measure_names import number

NOTHING = "–"
MOST_COLUMNS = 7
"""Of measures in one table: a page is this wide; more are in a further one."""
NOT_MEASURED = "not measured"
_SEEDS = "seeds:"
"""How the part of a note starts that holds the values of replicates; they are in the table of every number."""


class Footnotes:
    """Notes of the cells of one table, each text once, under letters."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def mark(self, note: str) -> str:
        """The letter of a note, raised; '' for no note."""
        parts = [part for part in note.split("; ") if not part.startswith(_SEEDS)]
        text = "; ".join(parts).removeprefix(NOT_MEASURED).lstrip(": ")
        if not text:
            return ""
        n = len(self._letters)
        letter = self._letters.setdefault(text, chr(ord("a") + n) if n < 26 else str(n - 25))
        return f"<sup>{letter}</sup>"

    def __str__(self) -> str:
        items = "".join(f"<li><sup>{letter}</sup> {escape(text)}</li>" for text, letter in self._letters.items())
        return f'<ul class="notes">{items}</ul>' if items else ""


def estimate_cell(
    estimate: Estimate, metric: str, notes: Footnotes, *, signed: bool = False, said: str = "", more: str = ""
) -> str:
    """A value with its interval; what could not be measured says so.

    Args:
        estimate: The value.
        metric: How it is written.
        notes: Of the table; takes the value's.
        signed: Whether it is a difference.
        said: HTML beside the value, such as a mark.
        more: Text beside the interval.
    """
    note = notes.mark(estimate.note)
    if not estimate.is_measured:
        return f'<span class="soft">{NOT_MEASURED}{note}</span>'
    shown = number(estimate.value, metric, signed=signed)
    interval = interval_words(estimate, metric, signed=signed)
    small = f" <small>{escape((interval + more).lstrip('; '))}</small>" if interval + more else ""
    return (shown if signed else f"<b>{shown}</b>") + note + (f" {said}" if said else "") + small


def mark(status: Status, words: Mapping[Status, str] = WORDS) -> str:
    """A symbol and a word, so that no colour is needed."""
    return f'<span class="mark {status}"><i aria-hidden="true">{SYMBOLS[status]}</i> {words[status]}</span>'


def p_cell(p_adjusted: float) -> str:
    """An adjusted p-value."""
    if pd.isna(p_adjusted):
        return NOTHING
    return "&lt; 0.001" if p_adjusted < 0.001 else f"{p_adjusted:.3f}"


def row(heads: Sequence[str], name: str, cells: Sequence[str]) -> str:
    """A row; every cell, as HTML, also carries its column's name for narrow screens."""
    data = "".join(
        f'<td data-label="{escape(head)}"{" class=none" if cell == NOTHING else ""}>{cell}</td>'
        for head, cell in zip(heads[1:], cells, strict=True)
    )
    return f'<tr><th scope="row">{escape(name)}</th>{data}</tr>'


def group_row(title: str, n_columns: int) -> str:
    """A row that names those below it."""
    return f'<tr class="group"><th colspan="{n_columns}" scope="rowgroup">{escape(title)}</th></tr>'


def table(heads: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    """A table with its header; '' without rows."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>' if body else ""
