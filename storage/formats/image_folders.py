"""Folders of images, each image with what names its prompt: by metadata, or by the sub-folder it lies in.

Metadata follow the ImageFolder convention of HF `datasets`: `metadata.csv`, `metadata.jsonl` or `metadata.parquet` with
`file_name` (from there, with either slash) and one of the columns in `NAMED_BY`, in the folder or, as on HF's hub, in
folders below it such as `train/`. Without any, sub-folders are named by the prompts' texts. Images are known by their
content; every other file is left out and counted, but for hidden ones.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from popalign_core.documents import other_separator
from popalign_core.errors import InputError
from storage.formats.column_kinds import TEXT
from storage.formats.external_files import check_columns, iter_rows, list_files, opened
from storage.formats.images import is_image_file, is_named_like_image

Naming = Literal["prompt_id", "text", "folder"]
Named = tuple[Naming, str | None, Path]
"""How an image's prompt is named, its name (None when nothing names it), and the image's file."""

NAMED_BY: Final[Mapping[str, Naming]] = {"prompt_id": "prompt_id", "prompt": "text", "text": "text", "caption": "text"}
"""Column -> what it holds; of several the first counts."""

NOT_IMAGE: Final = "not an image"
"""Why a file of a folder is left out."""

_SHOWN: Final = 200
"""Characters of a name that messages show."""
_METADATA: Final = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FILE: Final = "file_name"


def name_images(folder: Path) -> tuple[list[Named], Counter[str]]:
    """All images of a folder, and how many of its files were left out, by reason.

    Raises:
        InputError: When a file cannot be read, metadata do not fit or name a file that is not there, or nothing could
            name an image's prompt.
    """
    files = list_files(folder)
    metadata = [path for path in files if path.name in _METADATA and os.path.isfile(path)]
    for path in metadata:
        beside = [other.name for other in metadata if other.parent == path.parent]
        if len(beside) > 1:
            raise InputError(f"{path.parent} has {' and '.join(beside)}; keep one")
    named = [found for path in metadata for found in _named_by_file(path, folder)]
    listed = {path for _, _, path in named}
    images, left_out = [], Counter[str]()
    for path in files:
        if path not in listed and path not in metadata:
            if _is_image(path):
                images.append(path)
            else:
                left_out[NOT_IMAGE] += 1
    named += (("text", None, path) for path in images) if metadata else _named_by_folder(folder, images)
    return named, left_out


def naming_column(path: Path, columns: Iterable[str], needed: str) -> str:
    """The column that names the prompts.

    Args:
        path: Of the table, for messages.
        columns: Its own.
        needed: A column that must be there too.

    Raises:
        InputError: When one is missing.
    """
    columns = list(columns)
    found = [name for name in NAMED_BY if name in columns]
    if needed not in columns or not found:
        lacking = "names no prompts" if needed in columns else f"lacks the column {needed!r}"
        raise InputError(f"{path} {lacking}, it has {columns}; it needs {needed!r} and one of {list(NAMED_BY)}")
    return found[0]


def _is_image(path: Path) -> bool:
    """Also for links to images that are gone; not for pipes, which would be waited for."""
    if os.path.isfile(path):
        return is_image_file(path)
    return path.is_symlink() and not path.exists() and is_named_like_image(path)


def _named_by_folder(folder: Path, images: Iterable[Path]) -> Iterator[Named]:
    for path in images:
        if path.parent == folder:
            raise InputError(
                f"nothing names the prompt of {path}; write {_METADATA[0]} with {_FILE!r} and one of {list(NAMED_BY)}, "
                "or put the image into a sub-folder named by the prompt's text"
            )
        yield "folder", path.parent.name, path


def _named_by_file(metadata: Path, folder: Path) -> Iterator[Named]:
    """Every row's image."""
    columns, rows = _read_metadata(metadata)
    if not rows:
        raise InputError(f"{metadata} has no rows; give it one per image, with {_FILE!r} and one of {list(NAMED_BY)}")
    column = naming_column(metadata, columns, _FILE)
    for where, row in rows:
        file, name = row.get(_FILE), row.get(column)
        if not file or not _is_text(file) or not (name is None or _is_text(name)):
            raise InputError(f"{metadata}, {where}: {_FILE!r} is {file!r}, {column!r} is {name!r}; give text")
        yield NAMED_BY[column], name, _find(metadata, where, file, folder)


def _is_text(value: Any) -> bool:
    """JSON can spell half a character: a surrogate without its other half."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def _find(metadata: Path, where: str, file: str, folder: Path) -> Path:
    """The file that a row names, with either slash."""
    shown = repr(file if len(file) <= _SHOWN else f"{file[:_SHOWN]}...")
    for name in (file, file.replace("\\", "/")):
        inside = Path(os.path.relpath(os.path.abspath(metadata.parent / name), os.path.abspath(folder)))
        if ".." in inside.parts:
            raise InputError(f"{metadata}, {where} names {shown}, which is outside {folder}; name files in it alone")
        if os.path.isfile(folder / inside):  # also False for what is no path, unlike `Path.is_file`
            return folder / inside
    raise InputError(f"{metadata}, {where} names {shown}, which is not in {metadata.parent}; add it")


Rows = list[tuple[str, dict[str, Any]]]
"""Where each row stands, and its cells."""


def _read_metadata(path: Path) -> tuple[list[str], Rows]:
    """The names of the columns and all rows."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read_csv(path, file) if path.suffix == ".csv" else _read_jsonl(path, file)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); write it again as UTF-8") from error


def _read_parquet(path: Path) -> tuple[list[str], Rows]:
    with opened(path) as parquet:
        schema: pa.Schema = parquet.schema_arrow
        columns = dict.fromkeys((_FILE, naming_column(path, schema.names, _FILE)), TEXT)
        check_columns(path, schema, columns)
    return list(columns), [(f"row {number}, counted from 0,", row) for number, row in iter_rows(path, columns)]


def _read_csv(path: Path, file: Iterable[str]) -> tuple[list[str], Rows]:
    lines = iter(file)
    first = next(lines, "")
    if (found := other_separator(first, ",", (_FILE, *NAMED_BY))) is not None:
        raise InputError(f"{path} has {found} between its columns, not commas; save it again with commas")
    reader = csv.DictReader(chain([first], lines), strict=True)
    rows: Rows = [(f"line {reader.line_num}", row) for row in reader]
    for where, row in rows:
        more: Any = row.get(None)  # type: ignore[call-overload]  # where DictReader puts them
        if more and any(more):
            raise InputError(f"{path}, {where} has more cells than the first line, {more}; put commas into quotes")
    columns = list(reader.fieldnames or ())
    _refuse_repeated(path, columns)
    return columns, rows


def _read_jsonl(path: Path, file: Iterable[str]) -> tuple[list[str], Rows]:
    def to_row(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_repeated(path, [name for name, _ in pairs])
        return dict(pairs)

    rows: Rows = []
    for number, line in enumerate(file, 1):
        if line.strip():
            row = json.loads(line, object_pairs_hook=to_row)
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number} is {row!r}; write one JSON object per line")
            rows.append((f"line {number}", row))
    return list(dict.fromkeys(name for _, row in rows for name in row)), rows


def _refuse_repeated(path: Path, columns: list[str]) -> None:
    for name in (_FILE, *NAMED_BY):
        if columns.count(name) > 1:
            raise InputError(f"{path} has the column {name!r} {columns.count(name)} times; keep one")
