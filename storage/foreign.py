"""Files that others wrote: put in the order of their content, their Parquet read a row group at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from popalign_core.errors import InputError

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


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds numbers."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _iter_group(parquet: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    # one row group at a time: what iter_batches holds of several would grow with the file
    for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
        yield from batch.to_pylist()
