"""Folders for other programs: pictures wait on the disk, rows go out in small groups, a failure leaves nothing."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from popalign_core.errors import InputError, StoreError
from storage.formats.export_folder import ImageFile, new_folder, write_rows

SCHEMA = pa.schema({"number": pa.int64(), "picture": pa.binary()})


def test_pictures_come_back_in_any_order(tmp_path: Path) -> None:
    pictures = ImageFile(tmp_path)
    data = {f"image-{number}": bytes([number]) * (number * 1000) for number in range(5)}
    for name, content in data.items():
        pictures.put(name, content)
    for name in ("image-3", "image-0", "image-4", "image-3"):
        assert pictures.take(name) == data[name]
    pictures.put("late", b"more")
    assert (pictures.take("image-1"), pictures.take("late")) == (data["image-1"], b"more")
    with pytest.raises(StoreError, match="lacks image absent"):
        pictures.take("absent")
    pictures.close()
    assert list(tmp_path.iterdir()) == []


def test_files_are_numbered_and_groups_are_small(tmp_path: Path) -> None:
    rows = ({"number": number, "picture": bytes(10)} for number in range(100))
    write_rows(tmp_path, SCHEMA, rows, 100, 40)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"train-0000{number}-of-00003.parquet" for number in range(3)]
    assert [pq.read_metadata(file).num_rows for file in files] == [40, 40, 20]
    assert pq.read_metadata(files[0]).num_row_groups == 3
    numbers = [number for file in files for number in pq.read_table(file)["number"].to_pylist()]
    assert numbers == list(range(100))


def test_a_row_that_does_not_fit_is_an_error_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*train-00000-of-00001\.parquet: .*Arrow"):
        write_rows(tmp_path, SCHEMA, iter([{"number": "many", "picture": b""}]), 1, 5)


def test_a_folder_appears_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]

    def fail() -> None:
        with new_folder(tmp_path / "c") as folder:
            (folder / "file").write_text("x")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_empty_folder_may_be_there_a_full_one_or_a_file_may_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "file").write_text("x")
    for path in (tmp_path / "empty", tmp_path / "empty" / "file"):
        with pytest.raises(InputError, match="already exists"), new_folder(path):
            pass
    assert (tmp_path / "empty" / "file").read_text() == "x"
