"""Folders as the hub, browsers, phones and other systems leave them: taken, counted or refused by name."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import picture
from PIL import Image

from popalign_core.errors import InputError
from storage.formats.external_images import ImageLabel, iter_external_images, open_external_images
from storage.formats.images import is_image_file

JPEG = picture(99)


def put(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def names(folder: Path) -> list[str | None]:
    return [label.name for label in open_external_images([folder])[0].labels]


def lines(*rows: dict[str, Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "TGA"])
@pytest.mark.parametrize("name", ["0", "0.txt", "0.PNG", "0.jfif"])
def test_images_are_known_by_their_content(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "a judge").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a judge" / name, kind)
    assert names(tmp_path) == ["a judge"]


def test_what_is_named_like_an_image_is_one_whatever_became_of_it(tmp_path: Path) -> None:
    for name in ("0.png", "0.HEIC", "0.tif", "0.jfif", "0.avif", "0.bmp"):
        (tmp_path / name).write_bytes(b"torn")
        assert is_image_file(tmp_path / name)
    for name in ("0", "notes.txt", "0.parquet", "0.eps", "0.h5", "0.mpg"):
        (tmp_path / name).write_bytes(b"torn")
        assert not is_image_file(tmp_path / name)


def test_everything_else_is_counted_but_hidden_files(tmp_path: Path) -> None:
    files = {"README.md": "#", "a judge/notes.txt": "x", "a judge/0": JPEG, "a judge/.DS_Store": "x", ".git/0.png": "x"}
    source = open_external_images([put(tmp_path, files)])[0]
    assert [label.name for label in source.labels] == ["a judge"]
    assert source.left_out == {"not an image": 2}
    (tmp_path / "README.md").unlink()
    assert open_external_images([tmp_path])[0].sha256 != source.sha256  # the count is in the artifact, so in its key


def test_pipes_are_not_waited_for_and_links_are_followed(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", {"a judge/0.png": JPEG})
    put(tmp_path / "elsewhere", {"1.png": picture(7)})
    os.mkfifo(folder / "a judge" / "2.png")
    (folder / "a judge" / "3.png").symlink_to("gone.png")
    (folder / "a judge" / "loop").symlink_to(folder)
    (folder / "a cat").symlink_to(tmp_path / "elsewhere")
    source = open_external_images([folder])[0]
    assert [(label.name, label.sha256 is None) for label in source.labels] == [
        ("a cat", False),
        ("a judge", True),
        ("a judge", False),
    ]
    assert source.left_out == {"not an image": 1}


@pytest.mark.parametrize("depth", ["train", "data/train"])
@pytest.mark.parametrize("form", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_metadata_may_lie_where_the_hub_puts_them(tmp_path: Path, depth: str, form: str) -> None:
    rows = [{"file_name": f"{number}.png", "prompt": text} for number, text in enumerate(("a judge", "a cat"))]
    place = put(tmp_path / depth, {f"{number}.png": picture(number) for number in range(3)})
    table = pa.Table.from_pylist(rows)
    {
        "metadata.csv": lambda path: path.write_text("file_name,prompt\n0.png,a judge\n1.png,a cat\n"),
        "metadata.jsonl": lambda path: path.write_text(lines(*rows)),
        "metadata.parquet": lambda path: pq.write_table(
            table.set_column(1, "prompt", table["prompt"].dictionary_encode()), path
        ),
    }[form](place / form)
    assert names(tmp_path) == [None, "a cat", "a judge"]


def test_every_split_may_have_metadata_of_its_own(tmp_path: Path) -> None:
    train = {"train/0.png": picture(1), "train/metadata.csv": "file_name,text\n0.png,a judge\n"}
    test = {"test/0.png": picture(2), "test/metadata.jsonl": lines({"file_name": "0.png", "text": "a cat"})}
    assert names(put(tmp_path, train | test)) == ["a cat", "a judge"]
    both = put(tmp_path, {"test/metadata.parquet": "x"})
    with pytest.raises(InputError, match=r"test has metadata\.jsonl and metadata\.parquet; keep one"):
        open_external_images([both])


@pytest.mark.parametrize("file", ["train\\0.png", "train/0.png", "./train/0.png", "train/x/../0.png"])
def test_either_slash_names_a_file(tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"train/0.png": JPEG, "metadata.jsonl": lines({"file_name": file, "text": "a judge"})})
    assert names(tmp_path) == ["a judge"]
    monkeypatch.chdir(tmp_path / "train")
    for folder in (Path(".."), Path("../train/..")):
        sources = open_external_images([folder])
        assert list(iter_external_images(sources, {0})) == [JPEG]
        assert len(sources[0].labels) == 1


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../0.png", r"line 1 names '\.\./0\.png', which is outside .*; name files in it alone"),
        ("..\\0.png", r"which is outside"),
        ("/etc/hostname", r"names '/etc/hostname', which is outside"),
        ("x/../../0.png", r"which is outside"),
        ("0\0.png", r"names '0\\x00\.png', which is not in"),
        ("0" * 300, r"names '0{200}\.\.\.', which is not in"),
        ("0/" * 9000, r"names '(0/){100}\.\.\.', which is not in"),
        ("\ud800.png", r"'file_name' is '\\ud800\.png', .*; give text"),
        (".", r"names '\.', which is not in"),
        (7, r"'file_name' is 7, "),
    ],
)
def test_names_that_lead_nowhere_are_refused(tmp_path: Path, file: Any, message: str) -> None:
    put(tmp_path, {"0.png": JPEG, "set/0.png": JPEG})
    for content in (lines({"file_name": file, "text": "a"}), f"\ufeff{lines({'file_name': file, 'text': 'a'})}\r\n"):
        put(tmp_path / "set", {"metadata.jsonl": content})
        with pytest.raises(InputError, match=message):
            open_external_images([tmp_path / "set"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file_name,text,text\n0.png,a,b\n", r"has the column 'text' 2 times; keep one"),
        (
            "metadata.csv",
            "file_name;text\n0.png;a photo, smiling\n",
            "has semicolons between its columns, not commas; save",
        ),
        ("metadata.csv", "\ufefffile_name\ttext\n0.png\ta judge\n", "has tabs between its columns, not commas"),
        ("metadata.csv", "sep=;\nfile_name;text\n0.png;a judge\n", "has semicolons between its columns"),
        ("metadata.csv", "file_name,text\n0.png,a photo, smiling\n", r"line 2 has more cells .*\[' smiling'\]; put co"),
        ("metadata.csv", 'file_name,text\n0.png,"a photo\n', r"cannot be read \(unexpected end of data\)"),
        ("metadata.csv", "file_name,text\n0.png,café\n".encode("latin1"), r"cannot be read .*; write it again as UTF"),
        ("metadata.csv", "file_name,text\n0.png,a\n".encode("utf-16"), r"cannot be read .*; write it again as UTF-8"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a", "text": "b"}', r"has the column 'text' 2 times"),
        ("metadata.jsonl", lines({"file_name": "0.png", "text": "\ud800"}), r"'text' is '\\ud800'; give text"),
        ("metadata.jsonl", "[" * 200_000, r"cannot be read \(maximum recursion depth"),
        ("metadata.jsonl", '{"file_name": ' + "1" * 6000 + "}", r"cannot be read \(Exceeds the limit"),
        ("metadata.parquet", "PAR1", r"metadata\.parquet cannot be read as Parquet"),
    ],
)
def test_metadata_that_would_be_misread_are_refused(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_external_images([put(tmp_path, {"0.png": JPEG, name: content})])


def test_a_comma_at_the_end_of_every_line_does_no_harm(tmp_path: Path) -> None:
    assert names(put(tmp_path, {"0.png": JPEG, "metadata.csv": "file_name,text\n0.png,a photo,\n"})) == ["a photo"]


def test_metadata_in_parquet_are_text(tmp_path: Path) -> None:
    for columns, message in (
        ({"file_name": [1], "text": ["a"]}, "column 'file_name' is of type int64; it should hold text"),
        ({"file_name": [None], "text": ["a"]}, "row 0, counted from 0,: 'file_name' is None"),
        ({"file_name": ["0.png"]}, "names no prompts"),
    ):
        put(tmp_path, {"0.png": JPEG})
        pq.write_table(pa.table(columns), tmp_path / "metadata.parquet")
        with pytest.raises(InputError, match=message):
            open_external_images([tmp_path])


def test_names_that_are_no_unicode_are_names_of_no_prompt(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/a \xff"
    os.mkdir(place)
    with open(place + b"/0.png", "wb") as file:
        file.write(JPEG)
    found: list[ImageLabel] = list(open_external_images([tmp_path])[0].labels)
    assert [label.name for label in found] == ["a \udcff"]


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 5000, "a\0b"])
def test_paths_that_can_be_no_path_lead_nowhere(path: str) -> None:
    with pytest.raises(InputError, match="there is nothing at"):
        open_external_images([path])
