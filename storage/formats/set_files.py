"""Sets of pictures that were preferred to others, as `popalign export preferences --format datasets` writes them:
Parquet files with a row a member, read a piece at a time.

The columns that count are `set_id`, `role` (preferred or dispreferred), `caption`, `image` (bytes, or HF's struct of
bytes and path) and, where they are, `slot`, `discrepancy`, `balance` and `target`. All others are left alone.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from storage.formats.external_files import (
    Columns,
    RowFile,
    is_number,
    is_picture,
    is_text,
    iter_chunks,
    iter_rows,
    open_files,
    picture_bytes,
)


def _is_target(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    return {field.name for field in kind.value_type} >= {"class", "share"} and is_number(kind.value_type["share"].type)


_IMAGE: Final = "image"
_COLUMNS: Final[Columns] = {
    "set_id": (is_text, "text"),
    "role": (is_text, "text"),
    "caption": (is_text, "text"),
    _IMAGE: (is_picture, "the bytes of a picture, or a struct of bytes and path"),
}
_OPTIONAL: Final[Columns] = {
    "slot": (pa.types.is_integer, "a whole number"),
    "discrepancy": (is_number, "a number"),
    "balance": (is_number, "a number"),
    "target": (_is_target, "a list of structs of class and share"),
}


@dataclass(frozen=True)
class MemberRow:
    """One member of a set as it was published; nothing in it has been judged.

    Attributes:
        number: Of the row, from 0 through all files.
        set_id: Of the pair of sets it belongs to.
        role: preferred or dispreferred, if it is right.
        caption: What the pictures of both sets stand under.
        slot: Its place in the set; None where nobody says.
        discrepancy: Of the set from its target; 0 where nobody says.
        balance: Likewise.
        target: Share of "axis=class"; {} where nobody says.
        pictures: Its picture, encoded; None where there is none.
    """

    number: int
    set_id: str | None
    role: str | None
    caption: str | None
    slot: int | None
    discrepancy: float
    balance: float
    target: dict[str, float]
    pictures: tuple[bytes | None, ...]


def open_sets(paths: Sequence[str | Path]) -> list[RowFile]:
    """Check files of sets, or folders of them; as `foreign.open_files`.

    Raises:
        InputError: When there is no file, one is not Parquet or lacks a column, or two are the same.
    """
    files = [file for path in map(Path, paths) for file in (sorted(path.glob("*.parquet")) or [path])]
    return open_files(
        files,
        _COLUMNS,
        of="sets",
        form="what `popalign export preferences --format datasets` writes",
        optional=_OPTIONAL,
    )


def iter_members(
    files: Sequence[RowFile], n_rows: int, wanted: Container[int]
) -> Iterator[tuple[int, Iterator[MemberRow]]]:
    """The rows of all files with their pictures, cut into chunks; as `foreign.iter_chunks`."""
    for chunk, rows in iter_chunks(files, (*_COLUMNS, *_OPTIONAL), n_rows, wanted):
        yield chunk, (_member(number, cells) for number, cells in rows)


def iter_labels(files: Sequence[RowFile]) -> Iterator[MemberRow]:
    """The rows of all files, the pictures left unread."""
    first, columns = 0, [name for name in (*_COLUMNS, *_OPTIONAL) if name != _IMAGE]
    for file in files:
        for number, cells in iter_rows(file.path, columns, first=first):
            yield _member(number, cells)
        first += file.n_rows


def _member(number: int, cells: dict[str, Any]) -> MemberRow:
    slot, target = cells.get("slot"), cells.get("target") or []
    return MemberRow(
        number,
        cells["set_id"],
        cells["role"],
        cells["caption"],
        None if slot is None else int(slot),
        float(cells.get("discrepancy") or 0),
        float(cells.get("balance") or 0),
        {each["class"]: each["share"] for each in target if each["share"] is not None},
        (picture_bytes(cells.get(_IMAGE)),),
    )
