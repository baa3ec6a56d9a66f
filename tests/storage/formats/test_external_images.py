"""Images made elsewhere: the forms they come in, the order they are read in, and what is refused."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import Named, write_csv, write_files, write_jsonl, write_parquet, write_subfolders

from popalign_core.errors import InputError
from storage.formats.external_images import ImageLabel, iter_external_images, open_external_images

ROWS: list[Named] = [(f"a {letter}", b"%d" % number) for number, letter in enumerate("bca" * 3)]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def everything(*paths: Path) -> list[tuple[ImageLabel, bytes]]:
    sources = open_external_images(paths)
    labels = [label for source in sources for label in source.labels]
    return list(zip(labels, iter_external_images(sources, range(len(labels))), strict=True))


@pytest.mark.parametrize(
    ("column", "by"), [("prompt_id", "prompt_id"), ("prompt", "text"), ("text", "text"), ("caption", "text")]
)
def test_every_form_gives_the_same_pictures(tmp_path: Path, column: str, by: str) -> None:
    expected = [(ImageLabel(by, name, sha(data)), data) for name, data in ROWS if name and data]
    for path in (
        write_csv(tmp_path / "csv", ROWS, column),
        write_jsonl(tmp_path / "jsonl", ROWS, column),
    ):
        assert everything(path) == sorted(expected, key=lambda found: (found[0].name, found[0].sha256))
    for struct in (True, False):
        assert everything(write_parquet(tmp_path / f"{struct}.parquet", ROWS, column, struct=struct)) == expected


def test_sub_folders_name_the_prompts(tmp_path: Path) -> None:
    folder = write_subfolders(tmp_path / "pictures", [("A_judge", b"1"), ("A_judge", b"2"), ("a cat", b"3")])
    for name in (".DS_Store", "A_judge/._0000.PNG", "A_judge/notes.txt", ".cache/0.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"system's own")
    assert sorted(everything(folder)) == sorted(
        (ImageLabel("folder", name, sha(data)), data)
        for name, data in (("A_judge", b"1"), ("A_judge", b"2"), ("a cat", b"3"))
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".JPG"])
def test_files_are_known_by_their_suffix(tmp_path: Path, suffix: str) -> None:
    write_files(tmp_path / "a cat", [b"1"], suffix)
    assert [label.name for label, _ in everything(tmp_path)] == ["a cat"]


def test_a_picture_that_no_row_names_is_not_lost(tmp_path: Path) -> None:
    folder = write_csv(tmp_path / "pictures", [("a cat", b"1")])
    (folder / "stray.webp").write_bytes(b"2")
    assert everything(folder) == [
        (ImageLabel("text", None, sha(b"2")), b"2"),
        (ImageLabel("text", "a cat", sha(b"1")), b"1"),
    ]


def test_neither_place_nor_name_nor_order_matters(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    parquet = write_parquet(tmp_path / "1.parquet", ROWS[:4])
    moved = Path(shutil.copy(parquet, tmp_path / "9.parquet"))
    folders = [write_csv(tmp_path / "z", ROWS, "prompt"), write_jsonl(tmp_path / "a", shuffled, "caption")]
    first, second = (open_external_images(paths) for paths in ([folders[0], parquet], [moved, folders[1]]))
    assert [(source.sha256, source.labels) for source in first] == [(each.sha256, each.labels) for each in second]
    assert everything(folders[0], parquet) == everything(moved, folders[1])
    other = write_csv(tmp_path / "other", [*ROWS[1:], ("a d", ROWS[0][1])])
    assert open_external_images([other])[0].sha256 != open_external_images([folders[0]])[0].sha256


def test_other_columns_and_the_form_of_the_file_do_not_matter(tmp_path: Path) -> None:
    one, other = (
        write_parquet(tmp_path / f"{group}.parquet", ROWS, column, struct=struct, group=group)
        for group, column, struct in ((2, "caption", True), (5, "prompt", False))
    )
    assert open_external_images([one])[0].sha256 == open_external_images([other])[0].sha256


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    """All but the wanted files and row groups are gone by then: whoever reads them fails."""
    folder = write_csv(tmp_path / "pictures", ROWS)
    parquet = write_parquet(tmp_path / "rows.parquet", ROWS, group=4)
    for path in (folder, parquet):
        source = open_external_images([path])[0]
        for number, file in enumerate(source.files):
            if number not in (5, 6):
                file.unlink()
        if path == parquet:
            column = pq.ParquetFile(path).metadata.row_group(0).column(1)
            with path.open("r+b") as stream:
                stream.seek(column.dictionary_page_offset or column.data_page_offset)
                stream.write(b"\xff" * 32)
        found = [sha(data) for data in iter_external_images([source], {5, 6})]
        assert found == [label.sha256 for label in source.labels[5:7]]


def test_a_large_row_group_is_never_in_memory(tmp_path: Path) -> None:
    """16 MB in one row group of four pages."""
    path = write_parquet(
        tmp_path / "rows.parquet", [("a cat", random.Random(n).randbytes(4096)) for n in range(4096)], group=4096
    )
    before, held = pa.total_allocated_bytes(), 0
    for _ in iter_external_images(open_external_images([path]), range(4096)):
        held = max(held, pa.total_allocated_bytes() - before)
    assert held < 10_000_000


def test_a_row_may_lack_its_picture_or_its_prompt(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [(None, b"1"), ("a cat", None), ("a dog", b"")])
    labels = open_external_images([path])[0].labels
    assert labels == [("text", None, sha(b"1")), ("text", "a cat", None), ("text", "a dog", None)]


def test_a_source_that_changes_is_refused(tmp_path: Path) -> None:
    folder = write_csv(tmp_path / "pictures", [("a cat", b"1")])
    sources = open_external_images([folder])
    (folder / "0000.png").write_bytes(b"2")
    with pytest.raises(InputError, match="pictures changed while it was read; run the same command again"):
        list(iter_external_images(sources, {0}))
    (folder / "0000.png").unlink()
    with pytest.raises(InputError, match=r"0000\.png cannot be read \(No such file or directory\)"):
        list(iter_external_images(sources, {0}))


def test_metadata_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def folder(name: str, metadata: bytes, file: str = "metadata.csv") -> Path:
        write_files(tmp_path / name, [b"1"])
        (tmp_path / name / file).write_bytes(metadata)
        return tmp_path / name

    jsonl = "metadata.jsonl"
    needs = r"it needs 'file_name' and one of \['prompt_id', 'prompt', 'text', 'caption'\]"
    for path, message in (
        (folder("1", b"file_name,seed\n0000.png,1\n"), rf"names no prompts, it has \['file_name', 'seed'\]; {needs}"),
        (folder("2", b"image,text\n0000.png,a cat\n"), r"lacks the column 'file_name', it has \['image', 'text'\]; "),
        (folder("3", b""), r"metadata\.csv has no rows; give it one per image"),
        (folder("4", b"file_name,text\n9.png,a cat\n"), r"line 2 names '9\.png', which is not in .*4; add it"),
        (folder("5", b"file_name,text\n,a cat\n"), r"line 2: 'file_name' is '', 'text' is 'a cat'; give text"),
        (folder("6", b"file_name,text\n\xff\n"), r"metadata\.csv cannot be read .*; write it again as UTF-8"),
        (folder("7", b"[1]\n", jsonl), r"line 1 is \[1\]; write one JSON object per line"),
        (folder("8", b'{"file_name"\n', jsonl), r"metadata\.jsonl cannot be read .*; write it again"),
        (folder("9", b'{"file_name": "0000.png", "text": 3}', jsonl), r"line 1: .* 'text' is 3; give text"),
    ):
        with pytest.raises(InputError, match=message):
            open_external_images([path])
    (tmp_path / "9" / "metadata.csv").touch()
    with pytest.raises(InputError, match=r"has metadata\.csv and metadata\.jsonl; keep one"):
        open_external_images([tmp_path / "9"])


def test_sources_without_pictures_are_refused(tmp_path: Path) -> None:
    empty, loose, packed = (tmp_path / name for name in ("empty", "loose", "packed"))
    empty.mkdir()
    write_files(loose, [b"1"])
    packed.mkdir()
    good = write_parquet(packed / "rows.parquet", ROWS)
    text = tmp_path / "text.parquet"
    text.write_text("image,text\n", encoding="utf-8")
    for paths, message in (
        ([], r"no images were given \(0 paths\)"),
        ([tmp_path / "none"], r"there is nothing at .*none; give a folder of images or a Parquet file"),
        ([empty], r"empty holds no images; give a folder with images or a Parquet file with rows"),
        ([packed], r"packed holds no images \(1 not an image\); give its Parquet files, .*packed/\*\.parquet"),
        ([write_parquet(tmp_path / "rows.parquet", [])], r"rows\.parquet holds no images; "),
        ([loose], r"nothing names the prompt of .*0000\.png; write metadata\.csv .*, or put the image into a sub-fo"),
        ([text], r"text\.parquet cannot be read as Parquet"),
        ([good, Path(shutil.copy(good, tmp_path / "same.parquet"))], r"hold the same; give each once"),
    ):
        with pytest.raises(InputError, match=message):
            open_external_images(paths)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": pa.binary()}, r"names no prompts, it has \['image'\]; it needs 'image' and one of \['prompt_id'"),
        ({"picture": pa.binary(), "text": pa.string()}, r"lacks the column 'image', it has \['picture', 'text'\]"),
        ({"image": pa.string(), "text": pa.string()}, r"column 'image' is of type string; it should hold the bytes"),
        ({"image": pa.struct([("path", pa.string())]), "text": pa.string()}, r"column 'image' is of type struct<path"),
        ({"image": pa.binary(), "prompt": pa.int64()}, r"column 'prompt' is of type int64; it should hold text"),
    ],
)
def test_a_column_that_does_not_fit_is_named(tmp_path: Path, columns: dict[str, pa.DataType], message: str) -> None:
    table = pa.table({name: pa.nulls(1, kind) for name, kind in columns.items()})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=message):
        open_external_images([tmp_path / "rows.parquet"])


def test_damage_is_found_when_a_file_is_opened(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", ROWS, group=4)
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    with path.open("r+b") as stream:
        stream.seek(column.dictionary_page_offset or column.data_page_offset)
        stream.write(b"\xff" * 32)
    with pytest.raises(InputError, match=r"(?s)rows\.parquet cannot be read as Parquet .*; fetch it again or leave"):
        open_external_images([path])


def test_metadata_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As spreadsheets write it."""
    folder = write_csv(tmp_path / "pictures", [("a cat", b"1")])
    metadata = folder / "metadata.csv"
    metadata.write_bytes(b"\xef\xbb\xbf" + metadata.read_bytes())
    assert [label.name for label, _ in everything(folder)] == ["a cat"]
    metadata.rename(folder / "metadata.jsonl").write_text(
        "\ufeff" + json.dumps({"file_name": "0000.png", "prompt": "a dog"}), encoding="utf-8"
    )
    assert [label.name for label, _ in everything(folder)] == ["a dog"]


@pytest.mark.parametrize(("name", "content"), [("metadata.csv", "file_name,text\n"), ("metadata.jsonl", "\n")])
def test_metadata_without_rows_say_so(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"{name} has no rows; give it one per image, with 'file_name' and one of"):
        open_external_images([tmp_path])
