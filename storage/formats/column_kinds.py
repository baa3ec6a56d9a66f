"""What a column of somebody else's table should hold: the Arrow types that will do, and what becomes of a cell.

The same values come as `string`, `large_string`, `string_view` or a dictionary of those (pandas' Categorical), bytes
likewise, numbers as booleans, integers, floats or decimals. Arrow makes the same Python values of all of them; a column
of nothing but nulls has type `null` whatever it was meant to hold.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from popalign_core.errors import InputError

_INT32: Final = range(-(2**31), 2**31)


@dataclass(frozen=True)
class ColumnKind:
    """What a column should hold.

    Attributes:
        says: The same in words, for messages.
        fits: Whether an Arrow type will do.
        take: The value of a cell that is not null, given the folder of its table; None where it says nothing. Raises
            `ValueError` for a value that will not do.
    """

    says: str
    fits: Callable[[pa.DataType], bool]
    take: Callable[[Any, Path], Any]


Columns = Mapping[str, ColumnKind]
"""Column -> what it should hold."""


def linked_file(cell: Any, folder: Path) -> Path | None:
    """The file that a cell of HF's struct stands for: the one at its path when it has no bytes and that is there.

    Args:
        cell: Of a column of kind `IMAGE`.
        folder: Of its table; relative paths start there.
    """
    if not isinstance(cell, dict) or cell["bytes"] or not cell.get("path"):
        return None
    for name in (cell["path"], cell["path"].replace("\\", "/")):
        path: Path = folder / name
        if os.path.isfile(path):  # also False for what is no path, unlike `Path.is_file`
            return path
    return None


def read_image(path: Path) -> bytes:
    """The bytes of an image's file.

    Raises:
        InputError: When it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}); fix or remove it") from error


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _any_of(*tests: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: any(test(_plain(kind)) for test in (pa.types.is_null, *tests))


_is_text = _any_of(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_is_bytes = _any_of(
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary
)
_is_number = _any_of(pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_boolean)
_is_whole = _any_of(pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)
_is_list = _any_of(
    pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view,
    pa.types.is_large_list_view,
)  # fmt: skip


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    fields = {field.name: field.type for field in kind}
    return "bytes" in fields and _is_bytes(fields["bytes"]) and _is_text(fields.get("path", pa.null()))


def _is_shares(kind: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return True
    if pa.types.is_map(kind):
        return _is_text(kind.key_type) and _is_number(kind.item_type)
    if not _is_list(kind) or not pa.types.is_struct(kind.value_type):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    return fields.keys() >= {"class", "share"} and _is_text(fields["class"]) and _is_number(fields["share"])


def _take_number(cell: Any, folder: Path) -> float | None:
    number = float(cell)
    return None if number != number else number  # what is not a number says nothing


def _take_whole(cell: Any, folder: Path) -> int | None:
    if cell != cell:
        return None
    try:
        number = int(cell)
    except OverflowError as error:
        raise ValueError from error
    if number != cell or number not in _INT32:
        raise ValueError
    return number


def _take_image(cell: Any, folder: Path) -> bytes | None:
    if not isinstance(cell, dict):
        return cell or None
    path = linked_file(cell, folder)
    return (cell["bytes"] if path is None else read_image(path)) or None


def _take_shares(cell: Any, folder: Path) -> dict[str, float]:
    items = ((each["class"], each["share"]) if isinstance(each, dict) else each for each in cell if each is not None)
    shares = ((name, _take_number(share, folder)) for name, share in items if name is not None and share is not None)
    return {name: share for name, share in shares if share is not None}


TEXT: Final = ColumnKind("text", _is_text, lambda cell, folder: cell)
NUMBER: Final = ColumnKind("a number", _is_number, _take_number)
WHOLE: Final = ColumnKind("an integer", _is_whole, _take_whole)
IMAGE: Final = ColumnKind("the bytes of an image, or a struct of bytes and path", _is_image, _take_image)
SHARES: Final = ColumnKind("a list of structs of class and share, or a map", _is_shares, _take_shares)
LINK: Final = ColumnKind(IMAGE.says, _is_image, linked_file)
"""An image column again, of which only the files are wanted that it names in place of bytes."""
