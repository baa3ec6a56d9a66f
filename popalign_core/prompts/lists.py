"""Lists of prompts: the sets that ship with the package, and files that others wrote, told apart by their names."""

import csv
import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import PurePath
from typing import Any

from popalign_core.errors import InputError
from popalign_core.prompts.checks import check_balance

SETS = ("occupations-train", "occupations-eval", "couples", "ages", "descriptors")
"""Shipped sets, written for this project: 300 and 100 occupations, and for evaluation couples, people of any age, and
descriptions that pictures of people are often biased about."""
TEXT_COLUMNS = ("subject", "prompt", "text", "caption")
"""Columns that hold prompts, whatever their case; the first one there is read."""
THEME_COLUMN = "theme"
SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".parquet")


def shipped_list(name: str) -> tuple[list[str], list[str]]:
    """Subjects and themes of a shipped set."""
    data = (resources.files("popalign_core.prompts") / "sets" / f"{name}.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(data)))
    return [row["subject"] for row in rows], [row["theme"] for row in rows]


def parse_list(name: str, data: bytes) -> list[str]:
    """The prompts of a file, in order, as they are: empty, repeated and unusable ones too.

    Args:
        name: Of the file; its ending says what it is: .txt (a prompt a line), .csv, .tsv (PartiPrompts), .json
            (HPS v2: a list of texts, lists of texts by style, or a list of objects).
        data: Its bytes, UTF-8 with or without a byte order mark.

    Raises:
        InputError: When it is something else, no prompts are found in it, or its themes are out of balance.
    """
    text = _decode(name, data)
    match PurePath(name).suffix.lower():
        case ".txt":
            texts = text.splitlines()
        case ".csv":
            texts = _read_table(name, text, csv.excel)
        case ".tsv":
            texts = _read_table(name, text, _Tabs)
        case ".json":
            texts = _read_json(name, text)
        case suffix:
            raise InputError(f"prompt list {name} ends in {suffix!r}; give {_known()}")
    if not any(text.strip() for text in texts):
        raise InputError(f"prompt list {name} holds no prompts; give a file with at least one, or leave it out")
    return texts


def find_text_column(name: str, columns: Sequence[str]) -> str:
    """The column of a table that holds the prompts.

    Raises:
        InputError: When there is none.
    """
    known = {column.strip().casefold(): column for column in reversed(columns)}
    for wanted in TEXT_COLUMNS:
        if wanted in known:
            return known[wanted]
    raise InputError(
        f"prompt list {name} has the columns {', '.join(map(repr, columns)) or '(none)'}; name the one with the "
        f"prompts {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}, in the first line"
    )


def _known() -> str:
    return f"a file in {', '.join(SUFFIXES)}, or one of the shipped sets {', '.join(SETS)}"


def _decode(name: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"prompt list {name} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}; save it as UTF-8, "
            "for example with `iconv -f latin1 -t utf-8`"
        ) from error
    if "\x00" in text:
        raise InputError(f"prompt list {name} holds NUL characters, so it is no text in UTF-8; save it as UTF-8")
    return text


class _Tabs(csv.excel_tab):
    """As PartiPrompts writes: a quotation mark is a quotation mark."""

    quoting = csv.QUOTE_NONE


def _read_table(name: str, text: str, dialect: type[csv.Dialect]) -> list[str]:
    """The texts; where the table has a column of themes, they must be balanced."""
    rows = csv.DictReader(io.StringIO(text, newline=""), dialect=dialect, strict=True)
    try:
        column = find_text_column(name, rows.fieldnames or ())
        found = list(rows)
    except csv.Error as error:
        raise InputError(f"prompt list {name} is damaged at line {rows.line_num} ({error}); repair it") from error
    themes = [row[THEME_COLUMN] for row in found if row.get(THEME_COLUMN)]
    if themes:
        check_balance(themes, name)
    return [row[column] or "" for row in found]


def _read_json(name: str, text: str) -> list[str]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"prompt list {name} is not JSON ({error}); fetch it again or repair it") from error
    items = _flatten(document)
    if items is None or not all(isinstance(item, str) for item in items):
        raise InputError(
            f"prompt list {name} holds something else than prompts; give a list of texts, an object of such lists, "
            f"or a list of objects with {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}"
        )
    return items


def _flatten(document: Any) -> list[Any] | None:
    """The items of a list, or of all lists of an object; of an object as an item, its text."""
    if isinstance(document, dict):
        lists = list(document.values())
        return [item for part in lists for item in _flatten(part) or [None]] if lists else None
    if not isinstance(document, list):
        return None
    return [_text_of(item) if isinstance(item, dict) else item for item in document]


def _text_of(item: dict[str, Any]) -> Any:
    return next((item[name] for name in TEXT_COLUMNS if name in item), None)
