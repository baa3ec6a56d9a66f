"""Mutations of tables: Parquet of other programs, lists and labels as text, rows that cannot be used."""

import datetime
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mutations.editing import NO_FILES, cut, put
from mutations.judging import Counted, Equal, Kind, Mutant, Mutate, Refused
from mutations.row_mutations import ROWS
from mutations.table_world import Sort, TableWorld
from mutations.text_mutations import TEXT_TABLES

WRONG = 3
OTHER_TYPES = (pa.date32(), pa.list_(pa.int8()), pa.time64("us"), pa.struct([("x", pa.int8())]), pa.duration("s"))
_UNTYPED = ("labels",)
"""Sorts whose cells are text whatever type they have."""


def values_of(table: pa.Table, name: str) -> list[Any]:
    """A column's cells as `sibling_types` takes them."""
    cells = table[name].to_pylist()
    if name in ("jpg_0", "jpg_1", "image"):
        return [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
    return [{each["class"]: each["share"] for each in cell} for cell in cells] if name == "target" else cells


def _write(folder: Path, table: pa.Table, random: Random) -> Path:
    """In any of the ways in which Parquet is written."""
    has_views = any("view" in str(field.type) for field in table.schema)  # which pyarrow cannot cut into groups
    file = folder / random.choice(["a.parquet", "train-00000-of-00001.parquet", "ü (1).parquet"])
    pq.write_table(
        table,
        file,
        compression=random.choice(["none", "snappy", "zstd", "gzip", "brotli", "lz4"]),
        row_group_size=1000 if has_views else random.choice([1, 3, 1000]),
        use_dictionary=random.random() < 0.5,
        version=random.choice(["1.0", "2.4", "2.6"]),
        data_page_version=random.choice(["1.0", "2.0"]),
        write_statistics=random.random() < 0.5,
        write_page_checksum=random.random() < 0.5,
        write_page_index=random.random() < 0.5,
        store_schema=random.random() < 0.7,
    )
    return file


def _other_types(world: TableWorld, random: Random, folder: Path) -> Mutant:
    sort = world.any_sort(random)
    table = sort.table
    for name, makes in sort.columns.items():
        if random.random() < 0.7:
            make = makes[random.choice(sorted(makes))]
            table = table.set_column(table.schema.get_field_index(name), name, make(values_of(table, name)))
    return Mutant([_write(folder, table, random)], Equal(), sort.taker)


def _other_columns(world: TableWorld, random: Random, folder: Path) -> Mutant:
    """More of them, some twice, in another order."""
    sort = world.any_sort(random)
    table, n = sort.table, len(sort.table)
    more = {
        "url": ["https://example.org/a b"] * n,
        "when": [datetime.datetime(2024, 2, 29)] * n,
        "nested": [[{"a": [1, None]}]] * n,
        "": range(n),
        "nothing": pa.nulls(n),
        "__index_level_0__": range(n),
        "größe": [1.5] * n,
    }
    names = random.sample(list(more), random.randint(1, len(more)))
    names += [name for name in names if random.random() < 0.3 and sort.name != "labels"]
    for name in names:
        cells = more[name]
        table = table.append_column(name, cells if isinstance(cells, pa.Array) else pa.array(cells))
    order = random.sample(range(table.num_columns), table.num_columns)
    return Mutant([_write(folder, table.select(order), random)], Equal(), sort.taker)


def _by_pandas(world: TableWorld, random: Random, folder: Path) -> Mutant:
    """With or without an index, which may be one of the columns, and columns of its own types."""
    sort = world.any_sort(random)
    frame = sort.table.to_pandas()
    text = random.choice([name for name in frame.columns if pd.api.types.is_string_dtype(frame[name])])
    if random.random() < 0.5:
        frame[text] = frame[text].astype("category")
    index = random.choice(["none", "plain", "letters", "column"])
    if index == "letters":
        frame.index = pd.Index([f"row {number}" for number in range(len(frame))])
    elif index == "column":
        frame = frame.set_index(text)
    frame.to_parquet(folder / "pandas.parquet", index=None if index != "none" else False)
    return Mutant([folder / "pandas.parquet"], Equal(), sort.taker)


def _in_parts(world: TableWorld, random: Random, folder: Path) -> Mutant:
    """In several files, in any order; a set may lie in two of them."""
    sort = world.any_sort(random, "pairs", "sets", "images")
    at = random.randint(1, len(sort.table) - 1)
    places = [folder / "one", folder / "other"]
    for place in places:
        place.mkdir()
    parts = (sort.table[:at], sort.table[at:])
    files = [_write(place, part, random) for place, part in zip(places, parts, strict=True)]
    return Mutant(random.sample(files, 2), Equal(), sort.taker)


def _linked_images(world: TableWorld, random: Random, folder: Path) -> Mutant:
    """Paths in place of bytes, with either slash."""
    sort = world.any_sort(random, "pairs", "sets", "images")
    table, slash = sort.table, random.choice(["/", "\\"])
    for name in [name for name in sort.columns if name in ("jpg_0", "jpg_1", "image")]:
        cells = []
        for number, data in enumerate(values_of(table, name)):
            file = put(folder / "files" / f"{name}-{number}.jpg", data)
            path = random.choice([str(file), f"files{slash}{file.name}"])
            cells.append({"bytes": None if random.random() < 0.7 else data, "path": path})
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(cells, kind))
    return Mutant([_write(folder, table, random)], Equal(), sort.taker)


def _column(change: Callable[[Sort, str, Random], pa.Table], *, of_all: bool = False, untyped: bool = True) -> Mutate:
    """Refused by the column's name; of the columns that must be there, or of all."""

    def mutate(world: TableWorld, random: Random, folder: Path) -> Mutant:
        sort = world.any_sort(random)
        while not untyped and sort.name in _UNTYPED:
            sort = world.any_sort(random)
        names = [name for name in sort.columns if of_all or name not in sort.optional]
        name = random.choice(names)
        told = f"{name}|names no prompts" if not of_all else name
        table = change(sort, name, random)
        return Mutant([_write(folder, table, random)], Refused(WRONG, told), sort.taker)

    return mutate


def _retyped(sort: Sort, name: str, random: Random) -> pa.Table:
    place, table = sort.table.schema.get_field_index(name), sort.table
    return table.set_column(place, name, pa.nulls(len(table), random.choice(OTHER_TYPES)))


def _renamed(sort: Sort, name: str, random: Random) -> pa.Table:
    new = random.choice([f"{name}_", f"my {name}", name[:-1], "x"])
    return sort.table.rename_columns([new if each == name else each for each in sort.table.column_names])


def _file(fault: str) -> Mutate:
    def mutate(world: TableWorld, random: Random, folder: Path) -> Mutant:
        sort = world.any_sort(random)
        file = folder / "table.parquet"
        pq.write_table(sort.table, file, row_group_size=3, write_page_checksum=True)
        content = file.read_bytes()
        if fault == "truncated":
            put(file, cut(content, random))
        elif fault == "footer overwritten":
            at = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
            put(file, content[:at] + random.randbytes(24) + content[at + 24 :])
        elif fault == "page overwritten":
            put(file, _overwritten(file, random.choice(list(sort.columns)), random))
        else:
            put(file, NO_FILES[fault])
        return Mutant([file], Refused(WRONG, "table.parquet"), sort.taker)

    return mutate


def _overwritten(file: Path, name: str, random: Random) -> bytes:
    """The end of a column's last page, whose checksum says so."""
    metadata, content = pq.read_metadata(file), bytearray(file.read_bytes())
    group = metadata.row_group(random.randrange(metadata.num_row_groups))
    chunks = [group.column(number) for number in range(group.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == name)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start + chunk.total_compressed_size - 1] ^= random.randint(1, 255)
    return bytes(content)


def _no_rows(world: TableWorld, random: Random, folder: Path) -> Mutant:
    sort = world.any_sort(random)
    return Mutant([_write(folder, sort.table[:0], random)], Refused(WRONG, "hold|has 0 rows"), sort.taker)


def _given_twice(world: TableWorld, random: Random, folder: Path) -> Mutant:
    sort = world.any_sort(random, "pairs", "sets", "images")
    copy = put(folder / "copy.parquet", sort.taker.pristine[0].read_bytes())
    return Mutant([*sort.taker.pristine, copy], Refused(WRONG, "hold the same"), sort.taker)


def _no_file(world: TableWorld, random: Random, folder: Path) -> Mutant:
    sort = world.any_sort(random, "pairs", "sets", "prompts", "images")
    (folder / "empty").mkdir()
    place = random.choice([folder / "none.parquet", folder / "empty", folder / ("x" * 300), folder / "a\0b.parquet"])
    names = "is not there|is a folder|cannot be read|not a regular file|holds no|there is nothing|NUL"
    code = 2 if "\0" in str(place) and sort.name == "prompts" else WRONG  # there it is in the configuration
    return Mutant([place], Refused(code, names), sort.taker)


def _no_whole_number(world: TableWorld, random: Random, folder: Path) -> Mutant:
    sort = world.sort("sets")
    wrong = random.choice([0.5, 2.0**40, float("inf"), -float("inf"), -(2.0**40)])
    cells = [float(cell) for cell in values_of(sort.table, "slot")]
    cells[random.randrange(len(cells))] = wrong
    table = sort.table.set_column(sort.table.schema.get_field_index("slot"), "slot", pa.array(cells))
    return Mutant([_write(folder, table, random)], Refused(WRONG, "column 'slot' is .* in row"), sort.taker)


def _optional_gone(world: TableWorld, random: Random, folder: Path) -> Mutant:
    """Whether a pair has a label, when all have one."""
    sort = world.sort("pairs")
    return Mutant([_write(folder, sort.table.drop_columns(["has_label"]), random)], Equal(), sort.taker)


def _bad_rows(name: str) -> Mutate:
    """Rows that cannot be used, in place of good ones or among them."""

    def mutate(world: TableWorld, random: Random, folder: Path) -> Mutant:
        sort = world.sort(name)
        rows, result = ROWS[name](sort.table.to_pylist(), world.expected(sort), random)
        file = _write(folder, pa.Table.from_pylist(rows, sort.table.schema), random)
        return Mutant([file], Counted(result), sort.taker)

    return mutate


PARQUET: dict[str, Mutate] = {
    "other types": _other_types,
    "other columns": _other_columns,
    "by pandas": _by_pandas,
    "in parts": _in_parts,
    "linked images": _linked_images,
    "optional column gone": _optional_gone,
    "column gone": _column(lambda sort, name, random: sort.table.drop_columns([name])),
    "column renamed": _column(_renamed),
    "column twice": _column(lambda sort, name, random: sort.table.append_column(name, sort.table[name]), of_all=True),
    "column of another type": _column(_retyped, of_all=True, untyped=False),
    **{f"file: {fault}": _file(fault) for fault in ("truncated", "footer overwritten", "page overwritten", *NO_FILES)},
    "no rows": _no_rows,
    "given twice": _given_twice,
    "no file": _no_file,
    "no whole number": _no_whole_number,
    **{f"rows that cannot be used: {name}": _bad_rows(name) for name in ROWS},
}
TABLES = Kind("tables", TableWorld, {**PARQUET, **TEXT_TABLES}, n_commands=20)
