"""Tables as Parquet bytes: checked against their schema on the way in and out, equal rows give equal bytes."""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from popalign_core.errors import StoreError
from storage.formats.schemas import ADDED, SCHEMAS, schema_version, table_name

_FILE = re.compile(r"(?P<name>[a-z][a-z0-9_]*)(?:-(?P<shard>\d{5}))?\.parquet")


def file_name(name: str, shard: int | None) -> str:
    """Name of a table's file, or of one shard's."""
    return f"{name}.parquet" if shard is None else f"{name}-{shard:05d}.parquet"


def group_tables(files: Iterable[str]) -> dict[str, list[str]]:
    """Table -> its files in the order of the shards; only files at the top of an artifact are tables.

    Raises:
        StoreError: When a table is there both whole and in shards, or a shard is missing.
    """
    groups: dict[str, list[str]] = {}
    for file in sorted(files):
        if match := _FILE.fullmatch(file):
            groups.setdefault(match["name"], []).append(file)
    for name, found in groups.items():
        shards = [file_name(name, number) for number in range(len(found))]
        if found not in (shards, [file_name(name, None)]):
            raise StoreError(f"table {name!r} is {found}; expected {name}.parquet alone or shards from 00000 on")
    return groups


def encode(name: str, frame: pd.DataFrame) -> bytes:
    """The Parquet bytes of a table; no time, no pandas version and no index is in them.

    Args:
        name: Of the table, in `SCHEMAS`.
        frame: Exactly the schema's columns, in any order.

    Raises:
        StoreError: When there is no such table, a column is missing, unknown or of another
            type, or a value that must be there is absent.
    """
    sink = io.BytesIO()
    with _writer(sink, name) as write:
        write(frame)
    return sink.getvalue()


@contextmanager
def open_table(name: str, path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Write a table part by part, each a row group; nothing of it stays in memory.

    Args:
        name: Of the table, in `SCHEMAS`.
        path: Of the file.

    Yields:
        A function that writes one part; raises `StoreError` as `encode` does.
    """
    with open(path, "wb") as sink, _writer(sink, name) as write:
        yield write


@contextmanager
def _writer(sink: BinaryIO, name: str) -> Iterator[Callable[[pd.DataFrame], None]]:
    with pq.ParquetWriter(sink, _schema_of(name), use_dictionary=name != "images") as writer:
        yield lambda frame: writer.write_table(_to_arrow(name, frame))


def _to_arrow(name: str, frame: pd.DataFrame) -> pa.Table:
    schema = _schema_of(name)
    missing, unknown = sorted(set(schema.names) - set(frame)), sorted(map(str, set(frame) - set(schema.names)))
    if missing or unknown:
        raise StoreError(f"table {name!r}: missing columns {missing}, unknown columns {unknown}; give {schema.names}")
    maps = [field for field in schema if pa.types.is_map(field.type)]
    plain = pa.schema([field for field in schema if field not in maps])
    try:
        table = pa.Table.from_pandas(frame[plain.names], plain, preserve_index=False, nthreads=1)
        for field in maps:
            table = table.append_column(field, _map_column(frame[field.name], field.type))
        # the schema's metadata replace what pandas added: its version
        return table.select(schema.names).replace_schema_metadata(schema.metadata)
    except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise StoreError(f"table {name!r} does not fit its schema: {error}; see storage/formats/schemas.py") from error


def _map_column(cells: pd.Series, kind: pa.DataType) -> pa.Array:
    """Maps as sorted pairs, since equal dicts may have their items in another order; a dict in many rows is sorted
    and converted once.
    """
    objects = {id(cell): cell for cell in cells}
    place = {number: row for row, number in enumerate(objects)}
    rows = pa.array([place[id(cell)] for cell in cells], pa.int64())
    return pa.array([sorted(cell.items()) for cell in objects.values()], kind).take(rows)


def decode(name: str, data: bytes, where: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one file of a table, or some of its columns.

    Raises:
        StoreError: When it is no Parquet file, of another table, or of another schema version.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        check_schema(name, file.schema_arrow, where)
        wanted = [field for field in _schema_of(name) if columns is None or field.name in columns]
        there = set(file.schema_arrow.names)
        table = file.read([field.name for field in wanted if field.name in there], use_threads=False)
        for field in wanted:
            if field.name not in there:  # of a version later than the file's
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return table
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{where} cannot be read as Parquet ({error}); run `popalign verify`") from error


def count_rows(name: str, file: Path | BinaryIO, where: str) -> int:
    """Rows of a file, by its footer, after a check of its schema.

    Raises:
        StoreError: As `decode`.
    """
    try:
        footer = pq.read_metadata(file)
        schema = footer.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{where} cannot be read as Parquet ({error}); delete it and run the same command again"
        ) from error
    check_schema(name, schema, where)
    return int(footer.num_rows)


def check_schema(name: str, schema: pa.Schema, where: str) -> None:
    """Refuse a file of another table or another schema version.

    Raises:
        StoreError: Names both versions.
    """
    expected = _schema_of(name)
    written, known = schema_version(schema), schema_version(expected)
    if written is not None and known is not None and written == known - 1 and (name, known) in ADDED:
        fields = [field for field in expected if field.name not in ADDED[name, known]]
        expected, known = pa.schema(fields, expected.metadata), written
    if table_name(schema) != name or written is None:
        raise StoreError(f"{where} is not a table {name!r} of this program (it says {table_name(schema)!r}); move it")
    if written != known:
        raise StoreError(
            f"{where}: table {name!r} has schema version {written}, this program reads version {known}; "
            "run its stage again with `popalign stage NAME --force`, or use the version of popalign that wrote it"
        )
    if not schema.equals(expected):
        raise StoreError(
            f"{where}: table {name!r} has not the columns of schema version {known}; run `popalign verify`"
        )


def to_frame(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """One frame of all rows: maps as dicts, lists as lists, what is absent as pandas' missing value."""
    table = pa.concat_tables(list(tables))
    frame: pd.DataFrame = table.to_pandas(maps_as_pydicts="strict", use_threads=False)
    for field in table.schema:
        if pa.types.is_list(field.type):
            frame[field.name] = pd.Series(table[field.name].to_pylist(), index=frame.index, dtype=object)
    return frame


def schema_versions(names: Iterable[str]) -> dict[str, int]:
    """Table -> version of its schema."""
    return {name: schema_version(_schema_of(name)) or 0 for name in names}


def _schema_of(name: str) -> pa.Schema:
    if name not in SCHEMAS:
        raise StoreError(f"there is no table {name!r}; storage/formats/schemas.py has {sorted(SCHEMAS)}")
    return SCHEMAS[name]
