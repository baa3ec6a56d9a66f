"""Pairs of pictures that somebody compared, as Pick-a-Pic publishes them: Parquet files, read a piece at a time.

The columns that count are `jpg_0` and `jpg_1` (encoded pictures), `label_0` (1 when picture 0 is preferred, 0 when
picture 1 is, 0.5 for a tie), `caption` and, where there is one, `has_label`. All others are left alone.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from popalign_core.errors import InputError
from storage.foreign import in_order, is_bytes, is_number, is_text, iter_rows, opened
from storage.roots import digest_file, storage_errors

_COLUMNS: Final[dict[str, tuple[Callable[[pa.DataType], bool], str]]] = {
    "jpg_0": (is_bytes, "the bytes of a picture"),
    "jpg_1": (is_bytes, "the bytes of a picture"),
    "label_0": (is_number, "a number"),
    "caption": (is_text, "text"),
}
"""Column that must be there -> whether its type will do, and what it should hold."""

_HAS_LABEL: Final = "has_label"


@dataclass(frozen=True)
class PairFile:
    """A file of pairs, looked at but not read.

    Attributes:
        path: Where it lies.
        sha256: Of its content.
        n_rows: Pairs in it.
    """

    path: Path
    sha256: str
    n_rows: int


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


def open_pairs(paths: Sequence[str | Path]) -> list[PairFile]:
    """Check files of pairs: footer and columns, and the checksum of all they hold.

    Args:
        paths: Of the files. Their order does not matter.

    Returns:
        The files in the order of their checksums, so that the same content is always read in the same order.

    Raises:
        InputError: When there is no file, one is not Parquet or lacks a column, or two are the same.
    """
    if not paths:
        raise InputError("no file of pairs was given (0 files); give at least one Parquet file")
    return in_order(_open_pairs(Path(path)) for path in paths)


def iter_chunks(
    files: Sequence[PairFile], n_rows: int, wanted: Container[int]
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
    return groupby(_iter_rows(files, n_rows, wanted), key=lambda row: row.number // n_rows)


def iter_captions(files: Sequence[PairFile]) -> Iterator[str | None]:
    """Every row's caption, the pictures left unread."""
    for file in files:
        with opened(file.path) as parquet:
            for batch in parquet.iter_batches(columns=["caption"], use_threads=False):
                yield from batch.column(0).to_pylist()


def _open_pairs(path: Path) -> PairFile:
    if not path.is_file():
        what = (
            f"is a folder; give its files, {path}/*.parquet" if path.is_dir() else "is not there; give a Parquet file"
        )
        raise InputError(f"the file of pairs {path} {what}")
    with opened(path) as parquet:
        _check_columns(path, parquet.schema_arrow)
        n_rows = int(parquet.metadata.num_rows)
    with storage_errors(f"read {path}"):
        return PairFile(path, digest_file(path).sha256, n_rows)


def _check_columns(path: Path, schema: pa.Schema) -> None:
    missing = [name for name in _COLUMNS if name not in schema.names]
    if missing:
        raise InputError(f"{path} lacks the columns {missing}, it has {schema.names}; rename them as in Pick-a-Pic")
    for name, (fits, wanted) in _COLUMNS.items():
        kind = schema.field(name).type
        if not fits(kind):
            raise InputError(f"{path}: column {name!r} is of type {kind}; it should hold {wanted}")


def _iter_rows(files: Sequence[PairFile], n_rows: int, wanted: Container[int]) -> Iterator[PairRow]:
    first, columns = 0, (*_COLUMNS, _HAS_LABEL)
    for file in files:
        rows = iter_rows(file.path, columns, lambda number: number // n_rows in wanted, first)
        yield from (_pair_row(number, cells) for number, cells in rows)
        first += file.n_rows


def _pair_row(number: int, cells: dict[str, Any]) -> PairRow:
    label = cells["label_0"] if cells.get(_HAS_LABEL, True) else None
    pictures = (cells["jpg_0"], cells["jpg_1"])
    return PairRow(number, cells["caption"], None if label is None else float(label), pictures)
