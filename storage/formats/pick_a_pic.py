"""Pairs of pictures that somebody compared, as Pick-a-Pic publishes them: Parquet files, read a piece at a time.

The columns that count are `jpg_0` and `jpg_1` (encoded pictures), `label_0` (1 when picture 0 is preferred, 0 when
picture 1 is, 0.5 for a tie), `caption` and, where there is one, `has_label`. All others are left alone.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from storage.formats.external_files import (
    Columns,
    RowFile,
    is_bytes,
    is_number,
    is_text,
    iter_chunks,
    open_files,
    opened,
)

_COLUMNS: Final[Columns] = {
    "jpg_0": (is_bytes, "the bytes of a picture"),
    "jpg_1": (is_bytes, "the bytes of a picture"),
    "label_0": (is_number, "a number"),
    "caption": (is_text, "text"),
}

_HAS_LABEL: Final = "has_label"


@dataclass(frozen=True)
class PairRow:
    """One comparison as it was published; nothing in it has been judged.

    Attributes:
        number: Of the row, from 0 through all files.
        caption: What both pictures were drawn for.
        label: 1.0 picture 0 is preferred, 0.0 picture 1 is, 0.5 neither; None when nobody said.
        pictures: Encoded; None where there is none.
    """

    number: int
    caption: str | None
    label: float | None
    pictures: tuple[bytes | None, bytes | None]


def open_pairs(paths: Sequence[str | Path]) -> list[RowFile]:
    """Check files of pairs: footer and columns, and the checksum of all they hold.

    Args:
        paths: Of the files. Their order does not matter.

    Returns:
        The files in the order of their checksums, so that the same content is always read in the same order.

    Raises:
        InputError: When there is no file, one is not Parquet or lacks a column, or two are the same.
    """
    return open_files(paths, _COLUMNS, of="pairs", form="Pick-a-Pic")


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
    for chunk, rows in iter_chunks(files, (*_COLUMNS, _HAS_LABEL), n_rows, wanted):
        yield chunk, (_pair_row(number, cells) for number, cells in rows)


def iter_captions(files: Sequence[RowFile]) -> Iterator[str | None]:
    """Every row's caption, the pictures left unread."""
    for file in files:
        with opened(file.path) as parquet:
            for batch in parquet.iter_batches(columns=["caption"], use_threads=False):
                yield from batch.column(0).to_pylist()


def _pair_row(number: int, cells: dict[str, Any]) -> PairRow:
    label = cells["label_0"] if cells.get(_HAS_LABEL, True) else None
    pictures = (cells["jpg_0"], cells["jpg_1"])
    return PairRow(number, cells["caption"], None if label is None else float(label), pictures)
