"""Files that others wrote: put in the order of their content, their Parquet read a row group at a time."""

import hashlib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from popalign_core.errors import InputError
from storage.formats.column_kinds import IMAGE, LINK, TEXT, ColumnKind, Columns, linked_file, read_image
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


def list_files(folder: Path) -> list[Path]:
    """All that is below a folder and is no folder, sorted; links are followed, hidden names are left out.

    Raises:
        InputError: When a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise InputError(
            f"the folder {error.filename} cannot be listed ({error.strerror}); fix its permissions"
        ) from error

    found = list[Path]()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(os.path.realpath(place))
        visible = (name for name in folders if not name.startswith("."))
        # a link to where the walk came from would never end
        folders[:] = (name for name in visible if not here.is_relative_to(os.path.realpath(Path(place, name))))
        found += (Path(place, name) for name in files if not name.startswith("."))
    return sorted(found)


@dataclass(frozen=True)
class RowFile:
    """A Parquet file of records, looked at but not read.

    Attributes:
        path: Where it lies.
        sha256: Of its content, and of the images it names by their paths.
        n_rows: Records in it.
    """

    path: Path
    sha256: str
    n_rows: int


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
        InputError: When there is no file, one is not Parquet or lacks a column, two are the same, or all are empty.
    """
    if not paths:
        raise InputError(f"no file of {of} was given (0 files); give at least one Parquet file")
    files = in_order(_open_file(Path(path), columns, optional, of, form) for path in paths)
    if not any(file.n_rows for file in files):
        raise InputError(
            f"{', '.join(str(file.path) for file in files)} hold(s) no rows; give a file of {of} with some"
        )
    return files


def iter_chunks(
    files: Sequence[RowFile], columns: Columns, n_rows: int, wanted: Container[int]
) -> Iterator[tuple[int, Iterator[tuple[int, dict[str, Any]]]]]:
    """The rows of all files, cut into chunks; row groups that hold no wanted chunk are not read.

    Args:
        files: As `open_files` gives them.
        columns: To read, those that there are, and what they hold.
        n_rows: Rows a chunk; the last one may be shorter.
        wanted: Numbers of the chunks to read.

    Yields:
        A chunk's number and its rows with their numbers, which must be used before the next chunk is asked for.

    Raises:
        InputError: When a file is damaged, or a cell does not hold what it should.
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
        # pre_buffer would hold whole row groups, which are images
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True) as parquet:
            yield parquet
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet ({error}); fetch it again or leave it out") from error


def iter_rows(
    path: Path, columns: Columns, is_wanted: Callable[[int], bool] = lambda number: True, first: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The wanted rows of a Parquet file; row groups that hold none are not read.

    Args:
        path: Of the file.
        columns: To read, those that there are, and what they hold.
        is_wanted: By a row's number.
        first: The number of the first row.

    Yields:
        A row's number and its cells; None where a cell says nothing.

    Raises:
        InputError: When the file is damaged, or a cell does not hold what it should.
    """

    def read_cells(cells: dict[str, Any], row: int) -> dict[str, Any]:
        return {name: _take(cells[name], kind, (path, row, name)) for name, kind in found.items()}

    with opened(path) as parquet:
        found = {name: kind for name, kind in columns.items() if name in parquet.schema_arrow.names}
        start = first
        for group in range(parquet.num_row_groups):
            numbers = range(start, start + parquet.metadata.row_group(group).num_rows)
            if any(map(is_wanted, numbers)):
                rows = zip(numbers, _iter_group(parquet, group, list(found)), strict=True)
                yield from ((number, read_cells(cells, number - first)) for number, cells in rows if is_wanted(number))
            start = numbers.stop


def read_texts(path: Path, choose: Callable[[Sequence[str]], str]) -> list[str]:
    """One column of text of a Parquet file; an empty cell is an empty text.

    Args:
        path: Of the file.
        choose: The column, given the names of all.

    Raises:
        InputError: When the file is damaged, the column is there twice or is no text.
    """
    with opened(path) as parquet:
        name = choose(parquet.schema_arrow.names)
        check_columns(path, parquet.schema_arrow, {name: TEXT})
    return [cells[name] or "" for _, cells in iter_rows(path, {name: TEXT})]


def check_columns(path: Path, schema: pa.Schema, columns: Columns) -> None:
    """Refuse columns that are there twice or hold something else.

    Args:
        path: Of the table, for messages.
        schema: Its own.
        columns: Those that count; all of them are there.

    Raises:
        InputError: Names the column.
    """
    for name, kind in columns.items():
        n = schema.names.count(name)
        if n > 1:
            raise InputError(f"{path} has the column {name!r} {n} times; keep one")
        found = schema.field(name).type
        if not kind.fits(found):
            raise InputError(f"{path}: column {name!r} is of type {found}; it should hold {kind.says}")


def _open_file(path: Path, columns: Columns, optional: Columns, of: str, form: str) -> RowFile:
    if not os.path.isfile(path):
        is_folder = os.path.isdir(path)
        what = f"is a folder; give its files, {path}/*.parquet" if is_folder else "is not there; give a Parquet file"
        raise InputError(f"the file of {of} {path} {what}")
    with opened(path) as parquet:
        schema, n_rows = parquet.schema_arrow, int(parquet.metadata.num_rows)
        missing = [name for name in columns if name not in schema.names]
        if missing:
            raise InputError(f"{path} lacks the columns {missing}, it has {schema.names}; rename them as in {form}")
        check_columns(path, schema, {**columns, **{name: optional[name] for name in optional if name in schema.names}})
        linking = {
            name: LINK for name, kind in columns.items() if kind is IMAGE and _may_link(parquet, name, path.parent)
        }
    with storage_errors(f"read {path}"):
        sha256 = digest_file(path).sha256
    return RowFile(path, _with_links(path, sha256, linking), n_rows)


def _may_link(parquet: pq.ParquetFile, name: str, folder: Path) -> bool:
    """Whether there is a file at any path of an image column; its bytes are not read, nor the footer's counts of nulls,
    over which pyarrow ends the process when they are damaged.
    """
    kind = parquet.schema_arrow.field(name).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return False
    batches = parquet.iter_batches(columns=[f"{name}.path"], use_threads=False)
    paths = (cell for batch in batches for cell in batch.column(0).to_pylist() if cell)
    return any(linked_file({"bytes": None} | cell, folder) for cell in paths)


def _with_links(path: Path, sha256: str, linking: Columns) -> str:
    """The checksum of a table and of the images that it names by their paths: its own where there are none."""
    links = (link for _, cells in iter_rows(path, linking) for link in cells.values() if link) if linking else ()
    contents = [hashlib.sha256(read_image(link)).hexdigest() for link in links]
    return hashlib.sha256("".join([sha256, *contents]).encode()).hexdigest() if contents else sha256


def _take(cell: Any, kind: ColumnKind, place: tuple[Path, int, str]) -> Any:
    """What a cell says; `place` is its table, row and column."""
    path, row, name = place
    try:
        return None if cell is None else kind.take(cell, path.parent)
    except ValueError as error:
        raise InputError(
            f"{path}: column {name!r} is {cell!r} in row {row}, counted from 0; it should hold {kind.says}"
        ) from error


def _iter_group(parquet: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    # one row group at a time: what iter_batches holds of several would grow with the file
    n, n_said = 0, parquet.metadata.row_group(group).num_rows
    for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
        n += len(batch)
        if n > n_said:
            break
        yield from batch.to_pylist()
    if n != n_said:
        raise pa.ArrowInvalid(f"row group {group} should have {n_said} rows and has others")
