"""Files that others wrote: put in the order of their content, their Parquet read a row group at a time."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from popalign_core.errors import InputError
from storage.roots import digest_file, storage_errors

_BATCH_ROWS: Final = 16
"""Rows decoded at once. Besides them Arrow holds a data page of each column, twice while it decompresses: pyarrow
writes pages of 1024 rows or, in smaller row groups, of the whole group."""


class Given(Protocol):
    """Something that a user named."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def sha256(self) -> str:
        """Of what it holds."""


GivenT = TypeVar("GivenT", bound=Given)


def in_order(given: Iterable[GivenT]) -> list[GivenT]:
    """What was given, by checksum, so that the same content is always read in the same order.

    Raises:
        InputError: When two hold the same.
    """
    files = sorted(given, key=lambda file: file.sha256)
    for one, other in pairwise(files):
        if one.sha256 == other.sha256:
            raise InputError(f"{one.path} and {other.path} hold the same; give each once")
    return files


@dataclass(frozen=True)
class RowFile:
    """A Parquet file of records, looked at but not read.

    Attributes:
        path: Where it lies.
        sha256: Of its content.
        n_rows: Records in it.
    """

    path: Path
    sha256: str
    n_rows: int


Columns = Mapping[str, tuple[Callable[[pa.DataType], bool], str]]
"""Column that must be there -> whether its type will do, and what it should hold."""


def open_files(
    paths: Sequence[str | Path], columns: Columns, *, of: str, form: str, optional: Columns = MappingProxyType({})
) -> list[RowFile]:
    """Check Parquet files: footer and columns, and the checksum of all they hold.

    Args:
        paths: Of the files. Their order does not matter.
        columns: That they must have.
        of: What they are files of, for messages.
        form: What their columns should be like, for messages.
        optional: Columns that they may have.

    Returns:
        The files in the order of their checksums, so that the same content is always read in the same order.

    Raises:
        InputError: When there is no file, one is not Parquet or lacks a column, or two are the same.
    """
    if not paths:
        raise InputError(f"no file of {of} was given (0 files); give at least one Parquet file")
    return in_order(_open_file(Path(path), columns, optional, of, form) for path in paths)


def iter_chunks(
    files: Sequence[RowFile], columns: Sequence[str], n_rows: int, wanted: Container[int]
) -> Iterator[tuple[int, Iterator[tuple[int, dict[str, Any]]]]]:
    """The rows of all files, cut into chunks; row groups that hold no wanted chunk are not read.

    Args:
        files: As `open_files` gives them.
        columns: To read, those that there are.
        n_rows: Rows a chunk; the last one may be shorter.
        wanted: Numbers of the chunks to read.

    Yields:
        A chunk's number and its rows with their numbers, which must be used before the next chunk is asked for.

    Raises:
        InputError: When a file is damaged.
    """

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        first = 0
        for file in files:
            yield from iter_rows(file.path, columns, lambda number: number // n_rows in wanted, first)
            first += file.n_rows

    return groupby(rows(), key=lambda row: row[0] // n_rows)


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file; what pyarrow makes of a damaged one becomes an error that names it.

    Raises:
        InputError: When it cannot be read.
    """
    try:
        # pre_buffer would hold whole row groups, which are pictures
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as parquet:
            yield parquet
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet ({error}); fetch it again or leave it out") from error


def iter_rows(
    path: Path, columns: Sequence[str], is_wanted: Callable[[int], bool] = lambda number: True, first: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The wanted rows of a Parquet file; row groups that hold none are not read.

    Args:
        path: Of the file.
        columns: To read, those that there are.
        is_wanted: By a row's number.
        first: The number of the first row.

    Yields:
        A row's number and its cells.

    Raises:
        InputError: When the file is damaged.
    """
    with opened(path) as parquet:
        found = [name for name in columns if name in parquet.schema_arrow.names]
        for group in range(parquet.num_row_groups):
            numbers = range(first, first + parquet.metadata.row_group(group).num_rows)
            if any(map(is_wanted, numbers)):
                rows = zip(numbers, _iter_group(parquet, group, found), strict=True)
                yield from ((number, cells) for number, cells in rows if is_wanted(number))
            first = numbers.stop


def read_texts(path: Path, choose: Callable[[Sequence[str]], str]) -> list[str]:
    """One column of text of a Parquet file; an empty cell is an empty text.

    Args:
        path: Of the file.
        choose: The column, given the names of all.

    Raises:
        InputError: When the file is damaged, or the column is no text.
    """
    with opened(path) as parquet:
        name = choose(parquet.schema_arrow.names)
        kind = parquet.schema_arrow.field(name).type
        if not is_text(kind):
            raise InputError(f"{path} has the column {name!r} as {kind}, which is no text; give a column of strings")
        return [cell or "" for cell in parquet.read(columns=[name]).column(name).to_pylist()]


def is_picture(kind: pa.DataType) -> bool:
    """Whether a column holds pictures: bytes, or HF's struct of bytes and path."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return is_bytes(kind)


def picture_bytes(cell: Any) -> bytes | None:
    """The bytes in a cell of such a column; None where there are none."""
    data = cell["bytes"] if isinstance(cell, dict) else cell
    return data or None


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds numbers."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _open_file(path: Path, columns: Columns, optional: Columns, of: str, form: str) -> RowFile:
    if not path.is_file():
        what = (
            f"is a folder; give its files, {path}/*.parquet" if path.is_dir() else "is not there; give a Parquet file"
        )
        raise InputError(f"the file of {of} {path} {what}")
    with opened(path) as parquet:
        _check_columns(path, parquet.schema_arrow, columns, optional, form)
        n_rows = int(parquet.metadata.num_rows)
    with storage_errors(f"read {path}"):
        return RowFile(path, digest_file(path).sha256, n_rows)


def _check_columns(path: Path, schema: pa.Schema, columns: Columns, optional: Columns, form: str) -> None:
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise InputError(f"{path} lacks the columns {missing}, it has {schema.names}; rename them as in {form}")
    there = {name: rule for name, rule in optional.items() if name in schema.names}
    for name, (fits, wanted) in (*columns.items(), *there.items()):
        kind = schema.field(name).type
        if not fits(kind):
            raise InputError(f"{path}: column {name!r} is of type {kind}; it should hold {wanted}")


def _iter_group(parquet: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    # one row group at a time: what iter_batches holds of several would grow with the file
    for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
        yield from batch.to_pylist()
