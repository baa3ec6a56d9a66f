"""Pairs of images that somebody compared, as Pick-a-Pic publishes them: Parquet files, read a piece at a time.

The columns that count are `jpg_0` and `jpg_1` (encoded images, or HF's structs of bytes and path), `label_0` (1 or true
when image 0 is preferred, 0 or false when image 1 is, 0.5 for a tie), `caption` and, where there is one, `has_label`.
All others are left alone.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from storage.formats.column_kinds import IMAGE, NUMBER, TEXT, Columns
from storage.formats.external_files import RowFile, iter_chunks, iter_rows, open_files

_COLUMNS: Final[Columns] = {"jpg_0": IMAGE, "jpg_1": IMAGE, "label_0": NUMBER, "caption": TEXT}
_HAS_LABEL: Final = "has_label"
_OPTIONAL: Final[Columns] = {_HAS_LABEL: NUMBER}


@dataclass(frozen=True)
class PairRow:
    """One comparison as it was published; nothing in it has been judged.

    Attributes:
        number: Of the row, from 0 through all files.
        caption: What both images were made for.
        label: 1.0 image 0 is preferred, 0.0 image 1 is, 0.5 neither; None when there is no answer.
        images: Encoded; None where there is none.
    """

    number: int
    caption: str | None
    label: float | None
    images: tuple[bytes | None, bytes | None]


def open_pairs(paths: Sequence[str | Path]) -> list[RowFile]:
    """Check files of pairs: footer and columns, and the checksum of all they hold.

    Args:
        paths: Of the files. Their order does not matter.

    Returns:
        The files in the order of their checksums, so that the same content is always read in the same order.

    Raises:
        InputError: When there is no file, one is not Parquet lacks a column or has it twice, two are the same, or all
            are empty.
    """
    return open_files(paths, _COLUMNS, of="pairs", form="Pick-a-Pic", optional=_OPTIONAL)


def iter_pairs(
    files: Sequence[RowFile], n_rows: int, wanted: Container[int]
) -> Iterator[tuple[int, Iterator[PairRow]]]:
    """The rows of all files, cut into chunks; row groups that hold no wanted chunk are not read.

    Args:
        files: As `open_pairs` gives them.
        n_rows: Rows a chunk; the last one may be shorter.
        wanted: Numbers of the chunks to read.

    Yields:
        A chunk's number and its rows, which must be used before the next chunk is asked for.

    Raises:
        InputError: When a file is damaged.
    """
    for chunk, rows in iter_chunks(files, {**_COLUMNS, **_OPTIONAL}, n_rows, wanted):
        yield chunk, (_pair_row(number, cells) for number, cells in rows)


def iter_captions(files: Sequence[RowFile]) -> Iterator[str | None]:
    """Every row's caption, the images left unread."""
    for file in files:
        yield from (cells["caption"] for _, cells in iter_rows(file.path, {"caption": TEXT}))


def _pair_row(number: int, cells: dict[str, Any]) -> PairRow:
    label = cells["label_0"] if cells.get(_HAS_LABEL, True) else None
    return PairRow(number, cells["caption"], label, (cells["jpg_0"], cells["jpg_1"]))
