"""All runs of a store as one HTML page, each with its verdict and links to what can be read of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Literal
from urllib.parse import quote

from popalign_core.report.cells import NOTHING, row, table
from popalign_core.report.document import details, html_page

State = Literal["complete", "again", "incomplete", "damaged", "kept"]
"""`again`: complete, and begun once more since; `kept`: no run, but artifacts that a command keeps."""

_HEADS = ("Run", "Kind", "When (UTC)", "Verdict", "To read")
_SECTIONS: dict[str, tuple[State, ...]] = {
    "Complete": ("complete", "again"),
    "Not complete": ("incomplete",),
    "Damaged": ("damaged",),
}
_NOTES: dict[State, str] = {
    "again": "started again since, and not finished",
    "incomplete": "running, or ended early: the same command resumes it, or says what is wrong",
    "damaged": "its folder or its run.json cannot be read: run it again, or delete the folder",
}
_PAGES = (".html", ".md")
_STYLE = "runs"
"""Lists of files break into lines; elsewhere small text is an interval, which does not."""


@dataclass(frozen=True)
class ListedRun:
    """A folder of `runs/`, as the list shows it.

    Attributes:
        name: Of the folder.
        kind: Such as run, comparison, sweep, training; '' where nothing says it.
        state: How far it is.
        published: When its record was written, or the beginning of one that has none; None where that is not known.
        headline: Of its verdict; '' for none.
        files: Names of the files that can be read.
    """

    name: str
    kind: str
    state: State
    published: datetime | None
    headline: str
    files: tuple[str, ...]


def build_runs_page(runs: Iterable[ListedRun], store: str, board: Sequence[str]) -> str:
    """Build the page.

    Args:
        runs: In any order; the newest comes first.
        store: Where they are, as text.
        board: Names of the leaderboard's files that are there.

    Returns:
        A complete HTML document.
    """
    found = sorted(runs, key=lambda run: (-run.published.timestamp() if run.published else 0.0, run.name))
    n = sum(run.state in _SECTIONS["Complete"] for run in found)
    head = f'<p class="soft">{n} complete run{"s" if n != 1 else ""} in {escape(store)}.</p>'
    if board:
        head += f"<p>All checkpoints ever evaluated: {_links('', board)}</p>"
    if not found:
        head += "<p>There are no runs yet; <code>popalign run</code> makes one.</p>"
    return html_page("PopAlign runs", head, _sections(found))


def _sections(runs: Sequence[ListedRun]) -> Iterator[tuple[str, str]]:
    for title, states in _SECTIONS.items():
        yield title, table(_HEADS, [_row(run) for run in runs if run.state in states], _STYLE)
    kept = table(_HEADS, [_row(run) for run in runs if run.state == "kept"], _STYLE)
    yield "No runs", details("Artifacts of single commands, which `popalign gc` keeps", kept)


def _row(run: ListedRun) -> str:
    when = f"{run.published:%Y-%m-%d %H:%M}" if run.published else "not known"
    said = [escape(run.headline)] if run.headline else []
    if note := _NOTES.get(run.state):
        said.append(f"<small>{escape(note)}</small>")
    links = _links(f"/runs/{quote(run.name, safe='', errors='surrogateescape')}", run.files)
    # a folder's name may be no UTF-8, which no page can hold
    name = run.name.encode(errors="backslashreplace").decode()
    return row(_HEADS, name, (run.kind or NOTHING, when, "<br>".join(said) or NOTHING, links or NOTHING))


def _links(folder: str, files: Sequence[str]) -> str:
    """Pages by their names, and each table once with its formats."""
    pages = [name for suffix in _PAGES for name in files if name.endswith(suffix)]
    tables: dict[str, list[str]] = {}
    for name in files:
        if name not in pages:
            stem, _, suffix = name.rpartition(".")
            tables.setdefault(stem, []).append(_link(folder, name, suffix))
    parts = [_link(folder, name, name) for name in pages]
    small = ", ".join(f"{_shown(stem)} ({' '.join(links)})" for stem, links in tables.items())
    return " ".join(parts) + (f" <small>{small}</small>" if small else "")


def _link(folder: str, name: str, text: str) -> str:
    return f'<a href="{folder}/{quote(name, safe="", errors="surrogateescape")}">{_shown(text)}</a>'


def _shown(name: str) -> str:
    return escape(name.encode(errors="backslashreplace").decode())
