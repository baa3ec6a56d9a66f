"""One value, many Arrow types: what pandas, polars and HF `datasets` write is read, and what does not fit is named."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import ten_pairs, write_pairs
from set_files import member, two_sets, write_sets
from sibling_types import BOOLEANS, IMAGES, NUMBERS, SHARES, TEXTS, WHOLES

from popalign_core.errors import InputError
from storage.formats.external_files import read_texts
from storage.formats.external_images import open_external_images
from storage.formats.pick_a_pic import PairRow, iter_captions, iter_pairs, open_pairs
from storage.formats.set_files import MemberRow, iter_labels, iter_members, open_sets


def pairs(path: Path) -> list[PairRow]:
    files = open_pairs([path])
    rows = [row for _, chunk in iter_pairs(files, 4, range(9)) for row in chunk]
    assert [row.caption for row in rows] == list(iter_captions(files))
    return rows


def members(path: Path) -> list[MemberRow]:
    files = open_sets([path])
    rows = [row for _, chunk in iter_members(files, 4, range(9)) for row in chunk]
    assert [row.target for row in rows] == [row.target for row in iter_labels(files)]
    return rows


def rewrite(path: Path, **columns: Callable[[Sequence[Any]], pa.Array]) -> Path:
    """The same file with some columns made anew of their values."""
    table = pq.read_table(path)
    for name, make in columns.items():
        cells = table[name].to_pylist()
        if name.startswith(("jpg", "image")):
            cells = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
        if name == "target":
            cells = [None if cell is None else {each["class"]: each["share"] for each in cell} for cell in cells]
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, make(cells))
    pq.write_table(table, path)
    return path


def kinds(makes: Mapping[str, Any]) -> Any:
    return pytest.mark.parametrize("make", makes.values(), ids=makes)


@kinds(IMAGES)
def test_images_of_pairs_and_sets_come_as_bytes_or_structs(tmp_path: Path, make: Any) -> None:
    path = write_pairs(tmp_path / "pairs.parquet", ten_pairs())
    before = pairs(path)
    assert pairs(rewrite(path, jpg_0=make, jpg_1=make)) == before
    path = write_sets(tmp_path / "sets.parquet", two_sets())
    expected = members(path)
    assert members(rewrite(path, image=make)) == expected


@kinds(TEXTS)
def test_texts_come_in_every_type_that_holds_text(tmp_path: Path, make: Any) -> None:
    rows = [*ten_pairs(), ten_pairs()[0] | {"caption": None}]
    path = write_pairs(tmp_path / "pairs.parquet", rows)
    before = pairs(path)
    assert pairs(rewrite(path, caption=make)) == before
    assert read_texts(path, lambda columns: "caption") == [row["caption"] or "" for row in rows]
    path = write_sets(tmp_path / "sets.parquet", two_sets())
    expected = members(path)
    assert members(rewrite(path, set_id=make, role=make, caption=make)) == expected
    labelled = pa.table({"image": [b"1", b"2"], "prompt": make(["a cat", None])})
    pq.write_table(labelled, tmp_path / "images.parquet")
    assert [label.name for label in open_external_images([tmp_path / "images.parquet"])[0].labels] == ["a cat", None]


@kinds(BOOLEANS)
def test_labels_are_numbers_integers_or_true_and_false(tmp_path: Path, make: Any) -> None:
    rows = [row | {"label_0": None} if number == 3 else row for number, row in enumerate(ten_pairs())]
    path = write_pairs(tmp_path / "pairs.parquet", rows)
    assert [row.label for row in pairs(rewrite(path, label_0=make))] == [row["label_0"] for row in rows]
    path = write_pairs(tmp_path / "pairs.parquet", [*rows[:1], rows[2] | {"has_label": False}])
    assert [row.label for row in pairs(rewrite(path, has_label=make))] == [1.0, None]


@kinds(WHOLES)
def test_slots_are_whole_numbers_of_any_type(tmp_path: Path, make: Any) -> None:
    path = write_sets(tmp_path / "sets.parquet", [*two_sets(), member("one", "preferred", None, b"1")])
    before = members(path)
    assert members(rewrite(path, slot=make)) == before


@kinds(NUMBERS)
def test_measures_are_numbers_of_any_type(tmp_path: Path, make: Any) -> None:
    path = write_sets(tmp_path / "sets.parquet", two_sets())
    before = members(path)
    assert members(rewrite(path, discrepancy=make, balance=make)) == before


@kinds(SHARES)
def test_targets_are_lists_with_holes_or_maps(tmp_path: Path, make: Any) -> None:
    path = write_sets(tmp_path / "sets.parquet", [*two_sets(), member("one", "preferred", 9, b"1", target=None)])
    before = members(path)
    assert {str(row.target) for row in before} == {"{'gender=male': 0.5}", "{}"}
    assert members(rewrite(path, target=make)) == before


def test_nulls_in_a_target_say_nothing(tmp_path: Path) -> None:
    target = [None, {"class": None, "share": 0.5}, {"class": "a=b", "share": None}, {"class": "c=d", "share": 0.25}]
    target += [{"class": "e=f", "share": float("nan")}]
    path = write_sets(tmp_path / "sets.parquet", [member("one", "preferred", 0, b"1", target=target)])
    assert members(path)[0].target == {"c=d": 0.25}


def test_columns_of_nulls_alone_say_nothing(tmp_path: Path) -> None:
    """pandas knows no type for them."""
    path = write_sets(tmp_path / "sets.parquet", two_sets())
    before = members(path)
    rewrite(path, **dict.fromkeys(("slot", "discrepancy", "balance", "target"), lambda cells: pa.nulls(len(cells))))
    assert [(row.slot, row.discrepancy, row.target) for row in members(path)] == [(None, 0.0, {})] * len(before)


def test_what_is_not_a_number_says_nothing(tmp_path: Path) -> None:
    """As polars and floats with gaps write it."""
    nan = float("nan")
    path = write_sets(tmp_path / "sets.parquet", [member("one", "preferred", 0, b"1", discrepancy=nan)])
    assert members(rewrite(path, slot=lambda cells: pa.array([nan])))[0].slot is None
    assert members(path)[0].discrepancy == 0.0
    path = write_pairs(tmp_path / "pairs.parquet", ten_pairs()[:1])
    assert pairs(rewrite(path, has_label=lambda cells: pa.array([nan])))[0].label is None


def test_fixed_size_bytes_are_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([b"12", b"34"], pa.binary(2)), "text": ["a", "b"]}), tmp_path / "i")
    assert len(open_external_images([tmp_path / "i"])[0].labels) == 2


def test_an_index_of_pandas_does_no_harm(tmp_path: Path) -> None:
    frame = pd.DataFrame(ten_pairs())
    frame.to_parquet(tmp_path / "1.parquet")
    frame.set_index(pd.Index(list("abcdefghij"))).to_parquet(tmp_path / "2.parquet")
    frame.set_index("caption").to_parquet(tmp_path / "3.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "2.parquet").names
    assert pairs(tmp_path / "1.parquet") == pairs(tmp_path / "2.parquet") == pairs(tmp_path / "3.parquet")


@pytest.mark.parametrize("column", ["jpg_0", "label_0", "caption", "has_label"])
def test_a_column_that_is_there_twice_is_named(tmp_path: Path, column: str) -> None:
    path = write_pairs(tmp_path / "pairs.parquet", ten_pairs())
    table = pq.read_table(path)
    pq.write_table(table.append_column(column, table[column]), path)
    with pytest.raises(InputError, match=rf"pairs\.parquet has the column '{column}' 2 times; keep one"):
        open_pairs([path])


def test_other_columns_may_be_there_twice(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.parquet", ten_pairs())
    before, table = pairs(path), pq.read_table(path)
    pq.write_table(table.append_column("image_0_uid", table["image_0_uid"]), path)
    assert pairs(path) == before


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("slot", 0.5, pa.float64()),
        ("slot", 2**40, pa.int64()),
        ("slot", 2**63, pa.uint64()),
        ("slot", float("inf"), pa.float64()),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_row(
    tmp_path: Path, column: str, value: Any, kind: pa.DataType
) -> None:
    path = write_sets(tmp_path / "sets.parquet", two_sets())
    rewrite(path, **{column: lambda cells: pa.array([0] * 5 + [value] + [0] * (len(cells) - 6), kind)})
    with pytest.raises(
        InputError, match=rf"column '{column}' is .* in row 5, counted from 0; it should hold an integer"
    ):
        members(path)


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("has_label", pa.string(), "column 'has_label' is of type string; it should hold a number"),
        ("label_0", pa.dictionary(pa.int32(), pa.string()), "column 'label_0' is of type dictionary"),
        ("caption", pa.list_(pa.string()), "column 'caption' is of type list<"),
        ("caption", pa.binary(), "column 'caption' is of type binary; it should hold text"),
        ("jpg_0", pa.list_(pa.uint8()), "column 'jpg_0' is of type list<"),
        ("jpg_1", pa.struct([("bytes", pa.string())]), "column 'jpg_1' is of type struct<bytes: string>"),
    ],
)
def test_types_that_do_not_fit_are_named(tmp_path: Path, column: str, kind: pa.DataType, message: str) -> None:
    path = write_pairs(tmp_path / "pairs.parquet", ten_pairs())
    rewrite(path, **{column: lambda cells: pa.nulls(len(cells), kind)})
    with pytest.raises(InputError, match=message):
        open_pairs([path])


class TestLinks:
    """HF's structs with a path in place of bytes."""

    @staticmethod
    def write(path: Path, cells: Sequence[Any]) -> Path:
        rows = [row | {"jpg_0": cell} for row, cell in zip(ten_pairs(), cells, strict=False)]
        kinds = pq.read_schema(write_pairs(path, rows[:0])).remove(5)
        fields = [*kinds, pa.field("jpg_0", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), path)
        return path

    def test_a_file_at_the_path_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        for name in ("a.jpg", "b.jpg"):
            (tmp_path / "images" / name).write_bytes(name.encode())
        cells = [
            {"bytes": None, "path": "images/a.jpg"},
            {"bytes": None, "path": "images\\b.jpg"},
            {"bytes": None, "path": str(tmp_path / "images" / "a.jpg")},
            {"bytes": b"own", "path": "images/a.jpg"},
            {"bytes": None, "path": "gone.jpg"},
            {"bytes": None, "path": "nul\0.jpg"},
            {"bytes": None, "path": "x" * 5000},
            {"bytes": None, "path": "https://example.org/a.jpg"},
            {"bytes": None, "path": None},
            None,
        ]
        rows = pairs(self.write(tmp_path / "pairs.parquet", cells))
        assert [row.images[0] for row in rows] == [b"a.jpg", b"b.jpg", b"a.jpg", b"own", *[None] * 6]

    def test_the_key_knows_what_lies_there(self, tmp_path: Path) -> None:
        link = [{"bytes": None, "path": "a.jpg"}]
        path = self.write(tmp_path / "pairs.parquet", link)
        found = []
        for content in (None, b"1", b"2", b"1"):
            if content:
                (tmp_path / "a.jpg").write_bytes(content)
            found.append(open_pairs([path])[0].sha256)
        assert found[1] == found[3]
        assert len(set(found)) == 3

    def test_a_file_that_is_not_needed_changes_nothing(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "pairs.parquet", [{"bytes": b"own", "path": "a.jpg"}])
        before = open_pairs([path])
        (tmp_path / "a.jpg").write_bytes(b"1")
        assert open_pairs([path]) == before

    def test_images_with_prompts_may_lie_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"1")
        image = pa.array([{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": "gone"}])
        image = image.cast(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(pa.table({"image": image, "text": ["a cat", "a dog"]}), tmp_path / "images.parquet")
        labels = open_external_images([tmp_path / "images.parquet"])[0].labels
        assert [label.sha256 is None for label in labels] == [False, True]


@pytest.mark.parametrize("read", [pairs, members, lambda path: open_external_images([path])])
def test_files_without_rows_are_named(tmp_path: Path, read: Any) -> None:
    write = {pairs: write_pairs, members: write_sets}.get(read)
    path = tmp_path / "empty.parquet"
    if write:
        write(path, [])
    else:
        pq.write_table(pa.table({"image": pa.nulls(0, pa.binary()), "text": pa.nulls(0, pa.string())}), path)
    with pytest.raises(InputError, match=r"empty\.parquet hold"):
        read(path)


def test_a_folder_of_sets_may_be_laid_out_as_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_sets(tmp_path / "data" / "train.PARQUET", two_sets())
    assert len(members(tmp_path)) == len(two_sets())


def test_a_row_group_of_another_length_than_it_says_is_damage(tmp_path: Path) -> None:
    files = open_pairs([write_pairs(tmp_path / "pairs.parquet", ten_pairs(), group=5)])

    class Short(pq.ParquetFile):
        def iter_batches(self, *args: Any, **options: Any) -> Any:
            yield from (batch.slice(1) for batch in super().iter_batches(*args, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq, "ParquetFile", Short)
        with pytest.raises(InputError, match=r"row group 0 should have 5 rows and has others\); fetch it again"):
            list(iter_captions(files))
