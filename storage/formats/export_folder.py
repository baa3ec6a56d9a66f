"""Folders of Parquet for other programs, written file by file and renamed into place when complete."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from popalign_core.errors import InputError, StoreError
from storage.roots import PARTIAL, storage_errors

Row = Mapping[str, Any]

_GROUP_ROWS: Final = 16
"""Rows held at once, and a reader's: images of 1024 px have about 1.5 MB."""


class ImageFile:
    """Images in one unnamed file on the disk, by id: put in as the store hands them out, taken out in any order."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `close`)
        self._places: dict[str, tuple[int, int]] = {}

    def put(self, image_id: str, data: bytes) -> None:
        """Keep an image."""
        with storage_errors("keep the images to export beside the folder they go to"):
            self._places[image_id] = (self._file.seek(0, 2), len(data))
            self._file.write(data)

    def take(self, image_id: str) -> bytes:
        """The bytes of an image.

        Raises:
            StoreError: When it was never put in.
        """
        if image_id not in self._places:
            raise StoreError(f"the sample lacks image {image_id}; see `popalign verify`")
        start, length = self._places[image_id]
        self._file.seek(start)
        return self._file.read(length)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` when the block ends well.

    Raises:
        InputError: When there is something at `path`.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} already exists; choose another folder, or delete it")
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    with storage_errors(f"make the folder {path}"):
        partial.mkdir(parents=True)
    try:
        yield partial
        with storage_errors(f"make the folder {path}"):
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_rows(folder: Path, schema: pa.Schema, rows: Iterator[Row], n_rows: int, rows_a_file: int) -> None:
    """Write rows to `train-00000-of-00003.parquet` and so on, as HF `datasets` expects to find them.

    Args:
        folder: To write into.
        schema: Of the rows.
        rows: Taken a few at a time.
        n_rows: How many there are.
        rows_a_file: At most.

    Raises:
        StoreError: When a file cannot be written, the disk being full for example.
    """
    n_files = -(-n_rows // rows_a_file)
    for number in range(n_files):
        path = folder / f"train-{number:05d}-of-{n_files:05d}.parquet"
        # no image repeats, so a dictionary would hold them all again
        with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
            for group in _grouped(islice(rows, rows_a_file)):
                with storage_errors(f"write {path}"):
                    writer.write_table(pa.Table.from_pylist(group, schema))


def _grouped(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while group := list(islice(rows, _GROUP_ROWS)):
        yield group
