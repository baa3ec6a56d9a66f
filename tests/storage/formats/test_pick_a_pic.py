"""Files of pairs: what is refused, the order they are read in, and that only what is wanted is read."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import ten_pairs, write_pairs

from popalign_core.errors import InputError
from storage.formats.pick_a_pic import iter_captions, iter_pairs, open_pairs


def numbers(path: Path, wanted: set[int]) -> dict[int, list[int]]:
    chunks = iter_pairs(open_pairs([path]), 4, wanted)
    return {number: [row.number for row in rows] for number, rows in chunks}


def test_rows_are_read_in_chunks_across_row_groups(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.parquet", ten_pairs(), group=3)
    assert numbers(path, {0, 1, 2}) == {0: [0, 1, 2, 3], 1: [4, 5, 6, 7], 2: [8, 9]}
    assert numbers(path, {0, 2}) == {0: [0, 1, 2, 3], 2: [8, 9]}
    assert numbers(path, set()) == {}


def test_a_row_is_what_the_file_says(tmp_path: Path) -> None:
    rows = ten_pairs()
    rows[1] |= {"has_label": False}
    rows[2] |= {"label_0": None, "jpg_1": None, "caption": None}
    _, found = next(iter_pairs(open_pairs([write_pairs(tmp_path / "pairs.parquet", rows)]), 3, {0}))
    first, unlabelled, empty = found
    assert (first.caption, first.label) == ("a photo of number 0", 1.0)
    assert first.images == (rows[0]["jpg_0"], rows[0]["jpg_1"])
    assert unlabelled.label is None
    assert (empty.caption, empty.label, empty.images) == (None, None, (rows[2]["jpg_0"], None))


def test_files_are_read_in_the_order_of_their_content(tmp_path: Path) -> None:
    rows = ten_pairs()
    one, other = write_pairs(tmp_path / "1.parquet", rows[:4]), write_pairs(tmp_path / "2.parquet", rows[4:])
    here, there = open_pairs([one, other]), open_pairs([other, one])
    assert here == there
    assert sum(file.n_rows for file in here) == 10
    assert list(iter_captions(here)) == [row.caption for _, chunk in iter_pairs(here, 10, {0}) for row in chunk]


def test_finished_row_groups_are_not_read(tmp_path: Path) -> None:
    """The first row group is overwritten: whoever reads it fails."""
    path = write_pairs(tmp_path / "pairs.parquet", ten_pairs(), group=4)
    column = pq.ParquetFile(path).metadata.row_group(0).column(list(ten_pairs()[0]).index("jpg_0"))
    with path.open("r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(b"\xff" * 64)
    assert numbers(path, {1, 2}) == {1: [4, 5, 6, 7], 2: [8, 9]}
    with pytest.raises(InputError, match=r"(?s)pairs\.parquet cannot be read as Parquet .*; fetch it again"):
        numbers(path, {0})


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("jpg_0", pa.string(), r"column 'jpg_0' is of type string; it should hold the bytes of an image"),
        ("label_0", pa.string(), r"column 'label_0' is of type string; it should hold a number"),
        ("caption", pa.int64(), r"column 'caption' is of type int64; it should hold text"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, column: str, kind: pa.DataType, message: str) -> None:
    table = pq.read_table(write_pairs(tmp_path / "pairs.parquet", ten_pairs()))
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.nulls(len(table), kind)), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=message):
        open_pairs([tmp_path / "other.parquet"])


def test_files_that_are_no_pairs_are_refused(tmp_path: Path) -> None:
    good = write_pairs(tmp_path / "pairs.parquet", ten_pairs())
    lacking = write_pairs(tmp_path / "lacking.parquet", ten_pairs(), without=["jpg_1", "caption"])
    text = tmp_path / "text.parquet"
    text.write_text("caption,label_0\n", encoding="utf-8")
    same = Path(shutil.copy(good, tmp_path / "same.parquet"))
    for paths, message in (
        ([], r"no file of pairs was given"),
        ([tmp_path / "none.parquet"], r"none\.parquet is not there; give a Parquet file"),
        ([tmp_path], r"is a folder; give its files, .*/\*\.parquet"),
        ([text], r"text\.parquet cannot be read as Parquet"),
        ([lacking], r"lacks the columns \['jpg_1', 'caption'\], it has \['are_different', 'has_label', 'image_0_uid'"),
        ([good, same], r"hold the same; give each once"),
    ):
        with pytest.raises(InputError, match=message):
            open_pairs(paths)
