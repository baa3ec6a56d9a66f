"""What holds of tables of others: equal values are equal in any mix of types, and damage is refused or counted."""

import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import write_parquet
from pair_files import ten_pairs, write_pairs
from set_files import two_sets, write_sets
from sibling_types import BOOLEANS, IMAGES, NUMBERS, SHARES, TEXTS, WHOLES

from popalign_core.attributes.people_labels import read_labels
from popalign_core.errors import InputError
from storage.formats.external_files import read_texts
from storage.formats.external_images import iter_external_images, open_external_images
from storage.formats.pick_a_pic import iter_captions, iter_pairs, open_pairs
from storage.formats.set_files import iter_labels, iter_members, open_sets

thorough = settings(max_examples=25, deadline=None, database=None, derandomize=True)


def read_pairs(path: Path) -> Any:
    files = open_pairs([path])
    return [row for _, chunk in iter_pairs(files, 4, range(9)) for row in chunk], list(iter_captions(files))


def read_sets(path: Path) -> Any:
    files = open_sets([path])
    return [row for _, chunk in iter_members(files, 4, range(9)) for row in chunk], list(iter_labels(files))


def read_images(path: Path) -> Any:
    sources = open_external_images([path])
    labels = sources[0].labels
    wanted = {number for number, label in enumerate(labels) if label.sha256}
    return list(labels), list(iter_external_images(sources, wanted))


def read_people(path: Path) -> Any:
    return read_labels(path).to_numpy().tolist()


def read_list(path: Path) -> Any:
    return read_texts(path, lambda columns: next((name for name in columns if name == "class"), columns[0]))


Reader = Callable[[Path], Any]
PAIRS = {"jpg_0": IMAGES, "jpg_1": IMAGES, "label_0": BOOLEANS, "caption": TEXTS, "has_label": BOOLEANS}
SETS = {"set_id": TEXTS, "role": TEXTS, "caption": TEXTS, "image": IMAGES}
SETS |= {"slot": WHOLES, "discrepancy": NUMBERS, "balance": NUMBERS, "target": SHARES}
READERS: dict[Reader, dict[str, Any]] = {
    read_pairs: PAIRS,
    read_sets: SETS,
    read_images: {"image": IMAGES, "caption": TEXTS},
    read_people: {"image_id": TEXTS, "axis": TEXTS, "class": TEXTS},
    read_list: {"class": TEXTS},
}
OTHER_TYPES = (pa.date32(), pa.list_(pa.int8()), pa.time64("us"), pa.struct([("x", pa.int8())]))


@cache
def table_of(read: Reader) -> pa.Table:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.parquet")
        if read is read_pairs:
            write_pairs(path, ten_pairs())
        elif read is read_sets:
            write_sets(path, two_sets())
        elif read is read_images:
            write_parquet(path, [(f"a {number}", b"%d" % number) for number in range(8)])
        else:
            labels = {"image_id": list("abcd"), "axis": ["hair"] * 4, "class": ["long", "NA", "None", "null"]}
            pq.write_table(pa.table(labels), path)
        return pq.read_table(path)


def values_of(table: pa.Table, name: str) -> list[Any]:
    cells = table[name].to_pylist()
    if name in ("jpg_0", "jpg_1", "image"):
        return [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
    return [{each["class"]: each["share"] for each in cell} for cell in cells] if name == "target" else cells


def read_table(read: Reader, table: pa.Table, **options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.parquet")
        pq.write_table(table, path, **options)
        return read(path)


@pytest.mark.parametrize("read", READERS)
@thorough
@given(st.data())
def test_a_mix_of_equivalent_types_is_read_as_equal(read: Reader, data: st.DataObject) -> None:
    table = table_of(read)
    expected = read_table(read, table)
    for name, makes in READERS[read].items():
        make = makes[data.draw(st.sampled_from(sorted(makes)), label=name)]
        table = table.set_column(table.schema.get_field_index(name), name, make(values_of(table, name)))
    columns = data.draw(st.permutations(table.column_names), label="order")
    codec = data.draw(st.sampled_from(["none", "snappy", "zstd"]), label="compression")
    assert read_table(read, table.select(columns), compression=codec) == expected


@pytest.mark.parametrize("read", READERS)
@thorough
@given(st.data())
def test_a_column_that_is_gone_or_twice_or_of_another_type_is_named(read: Reader, data: st.DataObject) -> None:
    table = table_of(read)
    name = data.draw(st.sampled_from(sorted(READERS[read])), label="column")
    place = table.schema.get_field_index(name)
    change = data.draw(st.sampled_from(["gone", "twice", "type"]), label="change")
    may_lack = {"has_label", "slot", "discrepancy", "balance", "target"}
    if change == "gone" and (name in may_lack or read is read_list):
        return
    if change == "type" and read is read_people:
        return  # any type has a text; that is none of the classes
    kind = data.draw(st.sampled_from(OTHER_TYPES), label="type")
    changed = {
        "gone": lambda: table.remove_column(place),
        "twice": lambda: table.append_column(name, table[name]),
        "type": lambda: table.set_column(place, name, pa.nulls(len(table), kind)),
    }[change]()
    with pytest.raises(InputError, match=name if change != "gone" or read is not read_images else "names no|lacks"):
        read_table(read, changed)


@pytest.mark.parametrize("read", READERS)
@thorough
@given(st.data())
def test_nulls_say_nothing_and_stop_nothing(read: Reader, data: st.DataObject) -> None:
    table = table_of(read)
    name = data.draw(st.sampled_from(sorted(READERS[read])), label="column")
    row = data.draw(st.integers(0, len(table) - 1), label="row")
    cells = [None if number == row else cell for number, cell in enumerate(table[name].to_pylist())]
    place, kind = table.schema.get_field_index(name), table.schema.field(name).type
    changed = table.set_column(place, name, pa.array(cells, kind))
    if read is read_people:
        with pytest.raises(InputError, match="1 with an empty cell"):
            read_table(read, changed)
        return
    before, after = read_table(read, table), read_table(read, changed)
    if read is read_list:
        assert after == [cell or "" for cell in cells]
        return
    assert len(after[0]) == len(before[0])
    assert [one == other for one, other in zip(before[0], after[0], strict=True)].count(False) <= 1


@pytest.mark.parametrize("read", READERS)
def test_damaged_bytes_are_read_or_refused(read: Reader, tmp_path: Path) -> None:
    """Bytes overwritten anywhere and in the footer, ends cut off: nothing but an `InputError` comes out."""
    path, generator = tmp_path / "table.parquet", random.Random(7)
    pq.write_table(table_of(read), path, row_group_size=3)
    good, outcomes = path.read_bytes(), set[bool]()
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for number in range(150):
        bad = bytearray(good)
        for _ in range(generator.randint(1, 8)):
            bad[generator.randrange(footer if number % 3 else 0, len(bad))] = generator.randrange(256)
        path.write_bytes(bad if number % 5 else bad[: generator.randrange(len(bad))])
        try:
            read(path)
            outcomes.add(True)
        except InputError:
            outcomes.add(False)
    assert False in outcomes
