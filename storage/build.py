"""An artifact in the making: a folder that survives a kill, with markers of the shards that are finished."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from popalign_core.documents import read_json
from popalign_core.errors import StoreError
from storage.keys import ArtifactRef
from storage.manifest import MANIFEST, FileRecord
from storage.roots import PARTIAL, digest_file, storage_errors, write_atomic

if TYPE_CHECKING:
    import pandas as pd


class Build:
    """What a stage writes into; `Store.build` makes it and publishes it.

    A shard's files are those at the top of `folder` named `NAME-00003.EXT`. Files named `*.partial` are leftovers of
    a killed write and are never published.

    Attributes:
        ref: The artifact.
        folder: Becomes the artifact. It keeps what an earlier, killed attempt wrote.
        work: Beside it: kept between attempts too, never published (checkpoints, raw answers).
        already_published: Another process was faster; whatever is written here is thrown away.
    """

    def __init__(self, ref: ArtifactRef, home: Path, already_published: bool) -> None:
        self.ref = ref
        self.already_published = already_published
        self.folder, self.work, self._markers = home / "files", home / "work", home / "shards"
        self._size_file = home / "shard_size.json"
        with storage_errors(f"make the build folder {home}"):
            for folder in (self.folder, self.work, self._markers):
                folder.mkdir(parents=True, exist_ok=True)
            # Of an attempt killed between writing its manifest and the rename that publishes.
            (self.folder / MANIFEST).unlink(missing_ok=True)

    def write_table(self, name: str, frame: "pd.DataFrame", shard: int | None = None) -> None:
        """Write a table, or one shard of it; the file appears whole or not at all.

        Args:
            name: Of the table, in `storage.formats.schemas.SCHEMAS`.
            frame: Its rows.
            shard: Number of the shard, from 0 without gaps; None for a table in one file.

        Raises:
            StoreError: When the frame does not fit the schema, or the disk is full.
        """
        from storage.formats.parquet import encode, file_name

        self.write_file(file_name(name, shard), encode(name, frame))

    def write_parts(self, name: str, parts: "Iterable[pd.DataFrame]") -> None:
        """Write a table in one file, its rows part by part as they come; it appears whole or not at all.

        Args:
            name: Of the table, in `storage.formats.schemas.SCHEMAS`.
            parts: Its rows; none is kept.

        Raises:
            StoreError: As `write_table` does.
        """
        from storage.formats.parquet import file_name, open_table

        path = self.folder / file_name(name, None)
        partial = path.with_name(path.name + PARTIAL)
        with open_table(name, partial) as write:
            for part in parts:
                with storage_errors(f"write {path}"):
                    write(part)
        with storage_errors(f"write {path}"):
            partial.replace(path)

    def write_file(self, name: str, data: bytes) -> None:
        """Write a file that was made elsewhere, a shard of a table among them; it appears whole or not at all.

        Raises:
            StoreError: When it cannot be written, the disk being full for example.
        """
        path = self.folder / name
        with storage_errors(f"write {path}"):
            write_atomic(path, data)

    def read_table(self, name: str, shard: int | None = None, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """All rows of a table written so far, shards in order, or those of one shard; all columns, or some.

        Raises:
            StoreError: When there is none, or a file is damaged.
        """
        from storage.formats.parquet import decode, file_name, group_tables, to_frame

        there = os.listdir(self.folder)
        # beside one shard others may still be missing
        whole = group_tables(there).get(name, []) if shard is None else [file_name(name, shard)]
        files = [file for file in whole if file in there]
        if not files:
            raise StoreError(f"{self.ref} has no table {name!r} yet; write it first")
        paths = [self.folder / file for file in files]
        return to_frame(decode(name, path.read_bytes(), str(path), columns) for path in paths)

    def use_shard_size(self, n_items: int) -> None:
        """Say how many items a shard holds, before asking for finished ones.

        The size may change between attempts, since it changes no result. Shards cut to another size are thrown away.
        """
        with storage_errors(f"prepare the shards in {self._markers}"):
            if _read_json(self._size_file) not in (None, n_items):
                for folder in (self._markers, self.folder):
                    shutil.rmtree(folder)
                    folder.mkdir()
            write_atomic(self._size_file, json.dumps(n_items).encode())

    def shard_done(self, shard: int) -> bool:
        """Whether a shard is marked and its files still are, byte for byte, what was marked."""
        with storage_errors(f"read the shard marker {self._marker(shard)}"):
            files = self._marked_files(self._marker(shard))
            return bool(files) and all(_is_intact(self.folder / file, record) for file, record in files.items())

    def mark_shard(self, shard: int, counts: Mapping[str, int]) -> None:
        """Mark a shard as finished, with size and checksum of its files.

        Args:
            shard: Its number.
            counts: What the stage counted in it; summed over the shards they go into the manifest.

        Raises:
            StoreError: When the shard has no file.
        """
        files = [path for path in sorted(self.folder.glob(f"*-{shard:05d}.*")) if path.suffix != PARTIAL]
        if not files:
            raise StoreError(f"shard {shard} of {self.ref} has no file {self.folder}/*-{shard:05d}.*; write it first")
        with storage_errors(f"mark shard {shard} in {self._markers}"):
            records = {path.name: vars(digest_file(path)) for path in files}
            marker = {"files": records, "counts": {name: int(n) for name, n in counts.items()}}
            write_atomic(self._marker(shard), json.dumps(marker, sort_keys=True).encode())

    def validate(self) -> None:
        """Check that every table has its schema and every shard, and that finished shards are as they were marked.

        Raises:
            StoreError: Names the file.
        """
        self.count_rows()
        self.check_shards(self.digest_files())

    def count_rows(self) -> dict[str, int]:
        """Table -> rows, by the footers of the files, whose schemas are checked.

        Raises:
            StoreError: Names the file that does not fit.
        """
        from storage.formats.parquet import count_rows, group_tables

        groups = group_tables(os.listdir(self.folder))
        return {
            name: sum(count_rows(name, self.folder / file, str(self.folder / file)) for file in files)
            for name, files in groups.items()
        }

    def digest_files(self) -> dict[str, FileRecord]:
        """Every file to be published, with size and checksum.

        Raises:
            StoreError: When there is none, or one is a link or has the manifest's name.
        """
        with storage_errors(f"read the files in {self.folder}"):
            paths = [path for path in sorted(self.folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
            records = {}
            for path in paths:
                name = path.relative_to(self.folder).as_posix()
                if path.is_symlink() or name == MANIFEST:
                    raise StoreError(f"{path} cannot be published: links and {MANIFEST} are not a stage's to write")
                if path.suffix != PARTIAL:
                    records[name] = digest_file(path)
        if not records:
            raise StoreError(f"{self.ref} has no files in {self.folder}; a stage must write something to be published")
        return records

    def check_shards(self, records: Mapping[str, FileRecord]) -> None:
        """Compare files with the markers of their shards.

        Raises:
            StoreError: When a file was altered after its shard was marked.
        """
        for marker in sorted(self._markers.glob("*.json")):
            for file, record in self._marked_files(marker).items():
                if records.get(file) != record:
                    raise StoreError(
                        f"{self.folder / file} is not what shard {marker.stem} was marked with; "
                        "run the same command again, it redoes that shard"
                    )

    def sum_counts(self) -> dict[str, int]:
        """What the shards counted, summed over the shards."""
        total: dict[str, int] = {}
        for marker in sorted(self._markers.glob("*.json")):
            content = _read_json(marker)
            for name, n in (content["counts"] if isinstance(content, dict) else {}).items():
                total[name] = total.get(name, 0) + n
        return total

    def _marker(self, shard: int) -> Path:
        return self._markers / f"{shard:05d}.json"

    def _marked_files(self, marker: Path) -> dict[str, FileRecord]:
        """Files a marker lists; none when there is no readable marker."""
        content = _read_json(marker)
        try:
            files = content["files"] if isinstance(content, dict) else {}
            return {name: FileRecord(**record) for name, record in files.items()}
        except (KeyError, TypeError, AttributeError):
            return {}


def _read_json(path: Path) -> object:
    """The content of a small file of ours; None when it is absent or torn."""
    try:
        content: object = read_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content


def _is_intact(path: Path, record: FileRecord) -> bool:
    return path.is_file() and path.stat().st_size == record.bytes and digest_file(path) == record
