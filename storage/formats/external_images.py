"""Images made elsewhere, each with what names its prompt: folders and Parquet files, read an image at a time.

Folders are as `storage.formats.image_folders` describes them. A Parquet file has a column `image` (bytes, or HF's
struct of bytes and path) and one that names the prompts as a folder's metadata do. Its other columns are left alone.
"""

import hashlib
import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from popalign_core.errors import InputError
from storage.formats.column_kinds import IMAGE, TEXT, read_image
from storage.formats.external_files import check_columns, in_order, iter_rows, opened
from storage.formats.image_folders import NAMED_BY, Naming, name_images, naming_column

_IMAGE: Final = "image"


class ImageLabel(NamedTuple):
    """What is known of an image before it is decoded.

    Attributes:
        by: Whether the prompt is named by its id, its text, or a folder named by the text.
        name: Of the prompt; None when nothing names it.
        sha256: Of the encoded bytes; None when there are none.
    """

    by: Naming
    name: str | None
    sha256: str | None


@dataclass(frozen=True)
class ImageSource:
    """A folder or a file of images, all of them looked at and none kept.

    Attributes:
        path: Where it lies.
        sha256: Of the labels and of what is left out: of all that counts in it.
        labels: One an image; those of a folder are sorted, those of a file in the order of its rows.
        files: The images' files in the same order; none for a Parquet file.
        left_out: How many files of a folder are no images, by reason.
    """

    path: Path
    sha256: str
    labels: Sequence[ImageLabel]
    files: Sequence[Path]
    left_out: Mapping[str, int] = field(default_factory=dict)


def open_external_images(paths: Sequence[str | Path]) -> list[ImageSource]:
    """Find all images, what names their prompts, and the checksums of their bytes.

    Args:
        paths: Of folders and Parquet files. Their order does not matter.

    Returns:
        The sources in the order of their content.

    Raises:
        InputError: When there is no image, a file cannot be read or lacks a column, metadata name a file that is not
            there, or two sources hold the same.
    """
    if not paths:
        raise InputError("no images were given (0 paths); give a folder or a Parquet file")
    return in_order(_open(Path(path)) for path in paths)


def iter_external_images(sources: Sequence[ImageSource], wanted: Container[int]) -> Iterator[bytes]:
    """The encoded images that are wanted, one at a time.

    Args:
        sources: As `open_external_images` gives them.
        wanted: Numbers of images, counted from 0 through the labels of all sources.

    Raises:
        InputError: When an image is not what it was when its source was opened.
    """
    first = 0
    for source in sources:
        for number, data in _iter_source(source, wanted, first):
            if _digest(data) != source.labels[number - first].sha256:
                raise InputError(f"{source.path} changed while it was read; run the same command again")
            yield data
        first += len(source.labels)


def _open(path: Path) -> ImageSource:
    files: Sequence[Path] = ()
    left_out: Mapping[str, int] = {}
    if os.path.isdir(path):
        named, left_out = name_images(path)
        labelled = sorted(((_label(*found), found[2]) for found in named), key=lambda found: _order(found[0]))
        labels, files = [label for label, _ in labelled], [file for _, file in labelled]
    elif os.path.isfile(path):
        labels = list(_iter_labels(path))
    else:
        raise InputError(f"there is nothing at {path}; give a folder of images or a Parquet file")
    if not labels:
        raise InputError(f"{path} holds no images{_counted(left_out)}; {_advice(path)}")
    content = "".join(f"{json.dumps(label)}\n" for label in labels) + _counted(left_out)
    return ImageSource(path, hashlib.sha256(content.encode()).hexdigest(), labels, files, left_out)


def _label(by: Naming, name: str | None, file: Path) -> ImageLabel:
    return ImageLabel(by, name, _digest(read_image(file)) if file.exists() else None)


def _order(label: ImageLabel) -> tuple[str, str]:
    return label.name or "", label.sha256 or ""


def _counted(left_out: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{n} {reason}' for reason, n in sorted(left_out.items()))})" if left_out else ""


def _advice(path: Path) -> str:
    if path.is_dir() and any(path.glob("*.parquet")):
        return f"give its Parquet files, {path}/*.parquet"
    return "give a folder with images or a Parquet file with rows"


def _iter_source(source: ImageSource, wanted: Container[int], first: int) -> Iterator[tuple[int, bytes]]:
    if source.files:
        yield from ((number, read_image(file)) for number, file in enumerate(source.files, first) if number in wanted)
    else:
        rows = iter_rows(source.path, {_IMAGE: IMAGE}, lambda number: number in wanted, first)
        yield from ((number, cells[_IMAGE] or b"") for number, cells in rows)


def _iter_labels(path: Path) -> Iterator[ImageLabel]:
    """Of a Parquet file."""
    with opened(path) as parquet:
        column = naming_column(path, parquet.schema_arrow.names, _IMAGE)
        columns = {_IMAGE: IMAGE, column: TEXT}
        check_columns(path, parquet.schema_arrow, columns)
    for _, cells in iter_rows(path, columns):
        data = cells[_IMAGE]
        yield ImageLabel(NAMED_BY[column], cells[column], None if data is None else _digest(data))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
