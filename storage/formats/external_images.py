"""Pictures made elsewhere, each with what names its prompt: folders and Parquet files, read a picture at a time.

A folder follows the ImageFolder convention of HF `datasets`: `metadata.csv` or `metadata.jsonl` with `file_name` and
one of the columns in `NAMED_BY`; or, without metadata, sub-folders that each bear a prompt's text. A Parquet file has
a column `image` (bytes, or HF's struct of bytes and path) and one of the same columns. All else is left alone.
"""

import csv
import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa

from popalign_core.errors import InputError
from storage.formats.external_files import in_order, is_picture, is_text, iter_rows, opened, picture_bytes

Naming = Literal["prompt_id", "text", "folder"]

NAMED_BY: Final[Mapping[str, Naming]] = {"prompt_id": "prompt_id", "prompt": "text", "text": "text", "caption": "text"}
"""Column -> what it holds; of several the first counts."""

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
_METADATA: Final = ("metadata.csv", "metadata.jsonl")
_IMAGE: Final = "image"
_FILE: Final = "file_name"


class PictureLabel(NamedTuple):
    """What is known of a picture before it is decoded.

    Attributes:
        by: Whether the prompt is named by its id, its text, or a folder that bears the text.
        name: Of the prompt; None when nothing names it.
        sha256: Of the encoded bytes; None when there are none.
    """

    by: Naming
    name: str | None
    sha256: str | None


@dataclass(frozen=True)
class PictureSource:
    """A folder or a file of pictures, all of them looked at and none kept.

    Attributes:
        path: Where it lies.
        sha256: Of the labels: of all that counts in it.
        labels: One a picture; those of a folder are sorted, those of a file in the order of its rows.
        files: The pictures' files in the same order; none for a Parquet file.
    """

    path: Path
    sha256: str
    labels: Sequence[PictureLabel]
    files: Sequence[Path]


def open_pictures(paths: Sequence[str | Path]) -> list[PictureSource]:
    """Find all pictures, what names their prompts, and the checksums of their bytes.

    Args:
        paths: Of folders and Parquet files. Their order does not matter.

    Returns:
        The sources in the order of their content.

    Raises:
        InputError: When there is no picture, a file cannot be read or lacks a column, metadata names a file that is
            not there, or two sources hold the same.
    """
    if not paths:
        raise InputError("no pictures were given (0 paths); give a folder or a Parquet file")
    return in_order(_open(Path(path)) for path in paths)


def iter_external_images(sources: Sequence[PictureSource], wanted: Container[int]) -> Iterator[bytes]:
    """The encoded pictures that are wanted, one at a time.

    Args:
        sources: As `open_pictures` gives them.
        wanted: Numbers of pictures, counted from 0 through the labels of all sources.

    Raises:
        InputError: When a picture is not what it was when its source was opened.
    """
    first = 0
    for source in sources:
        for number, data in _iter_source(source, wanted, first):
            if _digest(data) != source.labels[number - first].sha256:
                raise InputError(f"{source.path} changed while it was read; run the same command again")
            yield data
        first += len(source.labels)


def _open(path: Path) -> PictureSource:
    files: Sequence[Path] = ()
    if path.is_dir():
        labelled = sorted(_iter_folder(path), key=lambda found: _order(found[0]))
        labels, files = [label for label, _ in labelled], [file for _, file in labelled]
    elif path.is_file():
        labels = list(_iter_labels(path))
    else:
        raise InputError(f"there is nothing at {path}; give a folder of pictures or a Parquet file")
    if not labels:
        raise InputError(f"{path} holds no pictures; {_advice(path)}")
    content = "".join(f"{json.dumps(label)}\n" for label in labels)
    return PictureSource(path, hashlib.sha256(content.encode()).hexdigest(), labels, files)


def _order(label: PictureLabel) -> tuple[str, str]:
    return label.name or "", label.sha256 or ""


def _advice(path: Path) -> str:
    if path.is_dir() and any(path.glob("*.parquet")):
        return f"give its Parquet files, {path}/*.parquet"
    return f"give a folder with files *{', *'.join(SUFFIXES)} or a Parquet file with rows"


def _iter_source(source: PictureSource, wanted: Container[int], first: int) -> Iterator[tuple[int, bytes]]:
    if source.files:
        yield from ((number, _read(file)) for number, file in enumerate(source.files, first) if number in wanted)
    else:
        rows = iter_rows(source.path, [_IMAGE], lambda number: number in wanted, first)
        yield from ((number, picture_bytes(cells[_IMAGE]) or b"") for number, cells in rows)


def _iter_labels(path: Path) -> Iterator[PictureLabel]:
    """Of a Parquet file."""
    with opened(path) as parquet:
        column = _check_schema(path, parquet.schema_arrow)
    for _, cells in iter_rows(path, [_IMAGE, column]):
        data = picture_bytes(cells[_IMAGE])
        yield PictureLabel(NAMED_BY[column], cells[column], None if data is None else _digest(data))


def _check_schema(path: Path, schema: pa.Schema) -> str:
    """The column that names the prompts."""
    column = _naming_column(path, schema.names, _IMAGE)
    kind = schema.field(_IMAGE).type
    for name, fits, found, wanted in (
        (_IMAGE, is_picture(kind), kind, "the bytes of a picture, or a struct of bytes and path"),
        (column, is_text(schema.field(column).type), schema.field(column).type, "text"),
    ):
        if not fits:
            raise InputError(f"{path}: column {name!r} is of type {found}; it should hold {wanted}")
    return column


def _naming_column(path: Path, columns: Iterable[str], needed: str) -> str:
    columns = list(columns)
    found = [name for name in NAMED_BY if name in columns]
    if needed not in columns or not found:
        lacking = "names no prompts" if needed in columns else f"lacks the column {needed!r}"
        raise InputError(f"{path} {lacking}, it has {columns}; it needs {needed!r} and one of {list(NAMED_BY)}")
    return found[0]


def _iter_folder(folder: Path) -> Iterator[tuple[PictureLabel, Path]]:
    metadata = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise InputError(f"{folder} has both {' and '.join(_METADATA)}; keep one")
    named = _named_by_file(metadata[0]) if metadata else _named_by_folder(folder)
    for by, name, path in named:
        yield PictureLabel(by, name, _digest(_read(path))), path


def _named_by_folder(folder: Path) -> Iterator[tuple[Naming, str, Path]]:
    for path in _list_pictures(folder):
        if path.parent == folder:
            raise InputError(
                f"nothing names the prompt of {path}; write {_METADATA[0]} with {_FILE!r} and one of {list(NAMED_BY)}, "
                "or put the picture into a sub-folder that bears the prompt's text"
            )
        yield "folder", path.parent.name, path


def _named_by_file(metadata: Path) -> Iterator[tuple[Naming, str | None, Path]]:
    """Every row's picture, and those that no row names."""
    rows, listed = _read_metadata(metadata), set[Path]()
    if not rows:
        raise InputError(f"{metadata} has no rows; give it one a picture, with {_FILE!r} and one of {list(NAMED_BY)}")
    column = _naming_column(metadata, dict.fromkeys(name for _, row in rows for name in row), _FILE)
    by = NAMED_BY[column]
    for number, row in rows:
        file, name = row.get(_FILE), row.get(column)
        if not file or not isinstance(file, str) or not isinstance(name, str | None):
            raise InputError(f"{metadata}, line {number}: {_FILE!r} is {file!r}, {column!r} is {name!r}; give text")
        path = metadata.parent / file
        if not path.is_file():
            raise InputError(f"{metadata}, line {number} names {file!r}, which is not in {metadata.parent}; add it")
        listed.add(path)
        yield by, name, path
    yield from ((by, None, path) for path in _list_pictures(metadata.parent) if path not in listed)


def _read_metadata(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Rows with the numbers of their lines."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, restkey="")
                return [(reader.line_num, row) for row in reader]
            rows = [(number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); write it again as UTF-8") from error
    for number, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is {row!r}; write one JSON object a line")
    return rows


def _list_pictures(folder: Path) -> list[Path]:
    """All files below that are named like pictures; hidden ones are no one's pictures but a system's own."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"the picture {path} cannot be read ({error.strerror}); see to it, or take it away") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
