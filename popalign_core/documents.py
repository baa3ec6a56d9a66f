"""JSON and TOML from files that others wrote: whatever is wrong with a text is a ValueError that says it in words.

The standard library's readers also raise `RecursionError`, take half of a character pair for text, and need the square
of a dotted key's length.
"""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

_MOST_DOTS = 64
_LONG_KEY = re.compile(
    rf"(?:[\w-]+|\"[^\"\n]*\"|'[^'\n]*')(?:\s*\.\s*(?:[\w-]+|\"[^\"\n]*\"|'[^'\n]*')){{{_MOST_DOTS},}}"
)
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SPREADSHEET_HINT = re.compile(r'"?sep=(.)"?,*', re.IGNORECASE)
"""What Excel reads in a first line."""
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(text: str | bytes, *, each_once: bool = False) -> Any:
    """What a JSON document holds.

    Args:
        text: Of the document; as bytes it is UTF-8, with or without a byte order mark.
        each_once: Whether an object must have each of its keys once, as in TOML; else the last one counts.

    Raises:
        ValueError: When it is no JSON, is nested too deep, or has half a character pair or an integer of thousands of
            digits.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    document = _read(partial(json.loads, object_pairs_hook=_unrepeated if each_once else None), text)
    if _HALF_PAIR.search(text):
        json.dumps(document, ensure_ascii=False).encode()
    return document


def read_toml(text: str) -> dict[str, Any]:
    """What a TOML document holds.

    Raises:
        ValueError: As `read_json`, and for a key of more than 64 dots.
    """
    if long := _LONG_KEY.search(text):
        raise ValueError(f"the key {long[0][:20]}... has more than {_MOST_DOTS} dots")
    document: dict[str, Any] = _read(tomllib.loads, text)
    return document


def check_depth(document: Any, most: int) -> None:
    """Refuse objects and lists in each other more than `most` deep.

    Raises:
        ValueError: When there are.
    """
    level = [document]
    for _ in range(most + 1):
        inner = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        ]
        level = [value for values in inner for value in values]
        if not level:
            return
    raise ValueError(f"it is nested more than {most} deep")


def other_separator(header: str, expected: str, wanted: Iterable[str]) -> str | None:
    """What separates the columns of a table in place of what is expected, in words; None where that does.

    Args:
        header: Its first line.
        expected: The separator.
        wanted: Names of columns in lower case, of which it should have one.
    """
    names = set(wanted)
    if hint := _SPREADSHEET_HINT.fullmatch(header.strip()):
        return None if hint[1] == expected else _SEPARATORS.get(hint[1], repr(hint[1]))

    def splits(mark: str) -> bool:
        return not names.isdisjoint(cell.strip().strip('"').casefold() for cell in header.split(mark))

    return None if splits(expected) else next((word for mark, word in _SEPARATORS.items() if splits(mark)), None)


def repeated_key(pairs: Iterable[tuple[str, Any]]) -> str | None:
    """The first key that stands in an object more than once; for `object_pairs_hook`, before the last one counts."""
    return next((key for key, n in Counter(key for key, _ in pairs).items() if n > 1), None)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (key := repeated_key(pairs)) is not None:
        raise ValueError(f"it has the key {key[:80]!r} more than once in one object")
    return dict(pairs)


def _read(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("it has an integer of thousands of digits") from None
        raise
