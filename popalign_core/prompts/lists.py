"""Lists of prompts: the sets that ship with the package, and files that others wrote, told apart by their names."""

import codecs
import csv
import io
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import PurePath
from typing import Any

from popalign_core.documents import check_depth, other_separator, repeated_key
from popalign_core.errors import InputError
from popalign_core.prompts.checks import check_balance

SETS = ("occupations-train", "occupations-eval", "couples", "ages", "descriptors")
"""Shipped sets, written for this project: 300 and 100 occupations, and for evaluation couples, people of any age, and
descriptions that images of people are often biased about."""
TEXT_COLUMNS = ("subject", "prompt", "text", "caption")
"""Columns that hold prompts, whatever their case; the first one there is read."""
THEME_COLUMN = "theme"
_SCENE_COLUMNS = ("scene", "scenes")
"""What would be part of the prompt if it were read; beside a subject it is no mere note."""
_DEEPEST = 64
"""Lists and objects in each other that a list of prompts in JSON may have."""
SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")


def shipped_list(name: str) -> tuple[list[str], list[str]]:
    """Subjects and themes of a shipped set."""
    data = (resources.files("popalign_core.prompts") / "sets" / f"{name}.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(data)))
    return [row["subject"] for row in rows], [row["theme"] for row in rows]


def parse_list(name: str, data: bytes) -> list[str]:
    """The prompts of a file, in order, as they are: empty, repeated and unusable ones too.

    Args:
        name: Of the file; its ending says what it is: .txt (a prompt a line), .csv, .tsv (PartiPrompts' own, or saved
            with CSV's quoting), .json (HPS v2: a list of texts, lists of texts by style, or a list of objects), .jsonl
            (a text or an object a line). Lines end at a newline only.
        data: Its bytes, UTF-8 with or without a byte order mark.

    Raises:
        InputError: When it is something else, no prompts are found in it, or its themes are out of balance.
    """
    text = _decode(name, data)
    match PurePath(name).suffix.lower():
        case ".txt":
            texts = _lines(text)
        case ".csv":
            texts = _read_table(name, text, csv.excel)
        case ".tsv":
            texts = _read_table(name, text, csv.excel_tab if _is_quoted(text) else _Tabs)
        case ".json":
            texts = _read_json(name, _load_json(name, text))
        case ".jsonl":
            lines = [line for line in _lines(text) if line.strip()]
            texts = _read_json(name, [_load_json(f"{name}, line {n},", line) for n, line in enumerate(lines, start=1)])
        case suffix:
            raise InputError(f"prompt list {name} ends in {suffix!r}; give {_known()}")
    if not any(text.strip() for text in texts):
        raise InputError(f"prompt list {name} holds no prompts; give a file with at least one, or leave it out")
    return texts


def find_text_column(name: str, columns: Sequence[str]) -> str:
    """The column of a table that holds the prompts.

    Raises:
        InputError: When there is none, more than one of that name, or a subject with its scene in another.
    """
    known = [column.strip().casefold() for column in columns]
    for wanted in TEXT_COLUMNS:
        if known.count(wanted) > 1:
            raise InputError(f"prompt list {name} has {known.count(wanted)} columns named {wanted!r}; keep one of them")
        if wanted in known:
            if wanted == TEXT_COLUMNS[0] and (scenes := [column for column in known if column in _SCENE_COLUMNS]):
                raise InputError(
                    f"prompt list {name} has the column {scenes[0]!r} beside {wanted!r}, which is not read; write both "
                    f"as one text under {wanted!r}, such as 'chef in a kitchen', or take the column out"
                )
            return columns[known.index(wanted)]
    raise InputError(
        f"prompt list {name} has the columns {', '.join(map(repr, columns)) or '(none)'}; rename the column that holds "
        f"the prompts, in the first line, to one of: {', '.join(TEXT_COLUMNS)}"
    )


def _known() -> str:
    return f"a file in {', '.join(SUFFIXES)}, or one of the shipped sets {', '.join(SETS)}"


_POINTER = "version https://git-lfs.github.com/spec/"
_WEB_PAGE = re.compile(r"\s*<(!doctype html|html)\b", re.IGNORECASE)


def _decode(name: str, data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"prompt list {name} is UTF-16; save it as UTF-8, for example with `iconv -f utf-16 -t utf-8`")
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
    if text.startswith(_POINTER):
        raise InputError(f"prompt list {name} is a pointer of Git LFS in place of the file; run `git lfs pull`")
    if _WEB_PAGE.match(text):
        raise InputError(f"prompt list {name} is a web page, as a download that went wrong leaves; fetch it again")
    return text


class _Tabs(csv.excel_tab):
    """As PartiPrompts writes: a quotation mark is a quotation mark."""

    quoting = csv.QUOTE_NONE


_NEWLINE = re.compile(r"\r\n|\n|\r")
_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^"\t\r\n]*))(\t|\r\n|\n|\r|\Z)')


def _lines(text: str) -> list[str]:
    """Without `str.splitlines`, which also splits at U+2028, U+0085 and form feeds within a prompt."""
    lines = _NEWLINE.split(text)
    return lines if lines[-1] else lines[:-1]


def _is_quoted(text: str) -> bool:
    """Whether a table with tabs was written with CSV's quoting, as pandas and spreadsheets do.

    Then every cell with quotation marks is quoted as a whole, and a mark within is doubled. A file in which cells
    merely begin and end with quotation marks, as in PartiPrompts, has no doubled ones and no quoted header.
    """
    at, is_header, is_certain = 0, True, False
    while at < len(text):
        field = _FIELD.match(text, at)
        if field is None:
            return False
        quoted, _, end = field.groups()
        if quoted is not None:
            has_newline = _NEWLINE.search(quoted) is not None and "\t" not in quoted and not is_header
            is_certain |= is_header or '""' in quoted or (has_newline and "\t" in text)
        is_header &= end == "\t"
        at = field.end()
    return is_certain


def _read_table(name: str, text: str, dialect: type[csv.Dialect]) -> list[str]:
    """The texts; where the table has a column of themes, they must be balanced."""
    first = _NEWLINE.split(text, maxsplit=1)[0]
    if (other := other_separator(first, dialect.delimiter, TEXT_COLUMNS)) is not None:
        usual = "tabs" if dialect.delimiter == "\t" else "commas"
        raise InputError(
            f"prompt list {name} has {other} between its columns, not {usual}; save it again with {usual}, or name a "
            "file with tabs .tsv, one with commas .csv"
        )
    rows = csv.DictReader(io.StringIO(text, newline=""), dialect=dialect, strict=True)
    try:
        column = find_text_column(name, rows.fieldnames or ())
        found = []
        for row in rows:
            if any(row.get(None) or ()):  # where csv puts what is beyond the header
                raise InputError(
                    f"prompt list {name} has more cells in line {rows.line_num} than its {len(rows.fieldnames or ())} "
                    "columns; quote texts that hold the separator"
                )
            found.append(row)
    except csv.Error as error:
        raise InputError(f"prompt list {name} is damaged at line {rows.line_num} ({error}); repair it") from error
    themes = [row[THEME_COLUMN] for row in found if row.get(THEME_COLUMN)]
    if themes:
        check_balance(themes, name)
    return [row[column] or "" for row in found]


def _load_json(name: str, text: str) -> Any:
    try:
        document = json.loads(text, object_pairs_hook=_unrepeated)
        check_depth(document, _DEEPEST)  # by a number: Python's own limit depends on who calls
        return document
    except InputError as error:
        raise InputError(f"prompt list {name} {error}") from error
    except (ValueError, RecursionError) as error:  # also numbers of over 4,300 digits, and lists in lists in lists
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise InputError(
            f"prompt list {name} is not JSON that can be read ({reason}); fetch it again or repair it"
        ) from error


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (key := repeated_key(pairs)) is not None:
        raise InputError(f"has an object with {key[:80]!r} more than once; keep one of them")
    return dict(pairs)


def _read_json(name: str, document: Any) -> list[str]:
    try:
        items = _flatten(name, document)
    except RecursionError as error:
        raise InputError(f"prompt list {name} is nested too deep; give a list of texts") from error
    if items is None or not all(isinstance(item, str) for item in items):
        raise InputError(
            f"prompt list {name} holds something else than prompts; give a list of texts, an object of such lists, "
            f"or a list of objects with {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}"
        )
    for number, item in enumerate(items, start=1):
        if any("\ud800" <= letter <= "\udfff" for letter in item):
            raise InputError(
                f"prompt {number} of list {name} holds half of a character, a lone surrogate: {item[:80]!r}; repair it"
            )
    return items


def _flatten(name: str, document: Any) -> list[Any] | None:
    """The items of a list, or of all lists of an object; of an object as an item, its text."""
    if isinstance(document, dict):
        known = [key for key in document if key.strip().casefold().removesuffix("s") in TEXT_COLUMNS]
        if known and len(document) > 1:
            raise InputError(
                f"prompt list {name} is an object with {known[0]!r} and {len(document) - 1} other field(s), which may "
                f"hold no prompts; give the list under {known[0]!r} alone"
            )
        parts = [_flatten(name, part) for part in document.values()]
        return [item for part in parts for item in ([None] if part is None else part)] if parts else None
    if not isinstance(document, list):
        return None
    return [_text_of(name, item) if isinstance(item, dict) else item for item in document]


def _text_of(name: str, item: dict[str, Any]) -> Any:
    """As of a row of a table: null is an empty text."""
    if not {key.strip().casefold() for key in item} & {*TEXT_COLUMNS}:
        return None
    text = item[find_text_column(name, list(item))]
    return "" if text is None else text
