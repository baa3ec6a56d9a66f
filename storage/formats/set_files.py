"""Sets of images that were preferred to others, as `popalign export preferences --format datasets` writes them:
Parquet files with a row a member, read a piece at a time.

The columns that count are `set_id`, `role` (preferred or dispreferred), `caption`, `image` (bytes, or HF's struct of
bytes and path) and, where they are, `slot`, `discrepancy`, `balance` and `target`. All others are left alone.
"""

import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from storage.formats.column_kinds import IMAGE, NUMBER, SHARES, TEXT, WHOLE, Columns
from storage.formats.external_files import RowFile, iter_chunks, iter_rows, list_files, open_files

_IMAGE: Final = "image"
_COLUMNS: Final[Columns] = {"set_id": TEXT, "role": TEXT, "caption": TEXT, _IMAGE: IMAGE}
_OPTIONAL: Final[Columns] = {"slot": WHOLE, "discrepancy": NUMBER, "balance": NUMBER, "target": SHARES}


@dataclass(frozen=True)
class MemberRow:
    """One member of a set as it was published; nothing in it has been judged.

    Attributes:
        number: Of the row, from 0 through all files.
        set_id: Of the pair of sets it belongs to.
        role: preferred or dispreferred, if it is right.
        caption: What the images of both sets stand under.
        slot: Its place in the set; None where not given.
        discrepancy: Of the set from its target; 0 where not given.
        balance: Likewise.
        target: Share of "axis=class"; {} where not given.
        images: Its image, encoded; None where there is none.
    """

    number: int
    set_id: str | None
    role: str | None
    caption: str | None
    slot: int | None
    discrepancy: float
    balance: float
    target: dict[str, float]
    images: tuple[bytes | None, ...]


def open_sets(paths: Sequence[str | Path]) -> list[RowFile]:
    """Check files of sets, or folders of them; as `external_files.open_files`.

    Raises:
        InputError: When there is no file, one is not Parquet, lacks a column or has it twice, two are the same, or all
            are empty.
    """
    files = [file for path in map(Path, paths) for file in (_tables_below(path) or [path])]
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
    """The rows of all files with their images, cut into chunks; as `external_files.iter_chunks`."""
    for chunk, rows in iter_chunks(files, {**_COLUMNS, **_OPTIONAL}, n_rows, wanted):
        yield chunk, (_member(number, cells) for number, cells in rows)


def iter_labels(files: Sequence[RowFile]) -> Iterator[MemberRow]:
    """The rows of all files, the images left unread."""
    first, columns = 0, {name: kind for name, kind in {**_COLUMNS, **_OPTIONAL}.items() if name != _IMAGE}
    for file in files:
        for number, cells in iter_rows(file.path, columns, first=first):
            yield _member(number, cells)
        first += file.n_rows


def _tables_below(folder: Path) -> list[Path]:
    """Its Parquet files, also those in folders such as the hub's `data/`; none when it is no folder."""
    return [path for path in list_files(folder) if path.suffix.lower() == ".parquet"] if os.path.isdir(folder) else []


def _member(number: int, cells: dict[str, Any]) -> MemberRow:
    return MemberRow(
        number,
        cells["set_id"],
        cells["role"],
        cells["caption"],
        cells.get("slot"),
        cells.get("discrepancy") or 0.0,
        cells.get("balance") or 0.0,
        cells.get("target") or {},
        (cells.get(_IMAGE),),
    )
