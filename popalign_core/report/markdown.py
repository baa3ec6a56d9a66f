"""Markdown that pages, model cards and Prefect need: tables, and text that is no markup."""

import re
from collections.abc import Sequence
from html import unescape

_IN_A_CELL = str.maketrans({"|": "\\|", "\n": " ", "\r": " "})
_ESCAPED = _IN_A_CELL | str.maketrans({sign: f"\\{sign}" for sign in "*_`[]"} | {"<": "&lt;", ">": "&gt;"})
"""What Markdown or HTML would take for markup."""


def escape_markdown(text: str) -> str:
    """Text as it is, whatever signs it holds: names come from outside."""
    return text.translate(_ESCAPED)


def unescape_markdown(text: str) -> str:
    """The text that `escape_markdown` was given, but for its line breaks."""
    return unescape(re.sub(r"\\([|*_`\[\]])", r"\1", text))


def cell(text: str) -> str:
    """Text or code that leaves the table it stands in whole, its markup kept."""
    return text.translate(_IN_A_CELL)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its header, a line a row, and a line break at the end."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
