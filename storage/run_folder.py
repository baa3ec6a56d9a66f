"""The end of a run: `<root>/runs/<name>/`, the few files a person wants and the list of artifacts behind them."""

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core.documents import read_json
from popalign_core.errors import StoreError
from storage.file_modes import take_umask
from storage.keys import ArtifactRef, check_name, plain
from storage.roots import PARTIAL, Root, storage_errors

if TYPE_CHECKING:
    import pandas as pd

RUNS = "runs"
RECORD = "run.json"
RESERVED = "reserved.json"


class RunFolder:
    """Files of one run; an earlier file of the same name is replaced.

    Attributes:
        name: Of the run.
        url: Of the folder.
    """

    def __init__(self, root: Root, name: str) -> None:
        check_name("run", name)
        self.name = name
        self._root = root
        self._path = f"{RUNS}/{name}"
        self.url = f"{root.url.rstrip('/')}/{self._path}"

    def write_bytes(self, file: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        self._root.write(f"{self._path}/{file}", data)

    def write_text(self, file: str, text: str) -> None:
        """Write a file as UTF-8."""
        self.write_bytes(file, text.encode())

    def read_text(self, file: str) -> str | None:
        """A file that was written as UTF-8; None when there is none."""
        data = self._root.read(f"{self._path}/{file}")
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise self._damaged(file) from error

    def write_table(self, name: str, frame: "pd.DataFrame") -> None:
        """Write NAME.parquet, checked against the table's schema.

        Raises:
            StoreError: When the frame does not fit.
        """
        from storage.formats.parquet import encode, file_name

        self.write_bytes(file_name(name, None), encode(name, frame))

    def copy_tree(self, source: Path, folder: str) -> None:
        """Copy a local folder in, in place of an earlier one of that name."""
        target = f"{self._path}/{folder}"
        if not self._root.local:
            if self._root.exists(target):
                self._root.remove_tree(target)
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                self._root.upload(path, f"{target}/{path.relative_to(source).as_posix()}")
            return
        with self.new_tree(folder) as partial, storage_errors(f"copy {source} to {self._root.at(target)}"):
            shutil.copytree(source, partial, dirs_exist_ok=True)

    @contextmanager
    def new_tree(self, folder: str) -> Iterator[Path]:
        """A folder to write into, which takes the place of an earlier one of that name when the block ends well.

        Of a local store alone: see `local_path`.

        Raises:
            StoreError: When it cannot be made, or put in its place.
        """
        place = Path(self._root.at(f"{self._path}/{folder}"))
        partial = place.with_name(f"{place.name}.{uuid.uuid4().hex}{PARTIAL}")
        with storage_errors(f"make the folder {place}"):
            for leftover in place.parent.glob(f"{place.name}.*{PARTIAL}"):
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)
        try:
            yield partial
            with storage_errors(f"make the folder {place}"):
                take_umask(partial)
                if place.exists():
                    self._root.remove_tree(f"{self._path}/{folder}")
                partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @property
    def local_path(self) -> Path | None:
        """Where it is on this machine; None for an object store."""
        return Path(self._root.at(self._path)) if self._root.local else None

    def remove_tree(self, folder: str) -> None:
        """Delete a folder that an earlier run of this name left, if there is one."""
        target = f"{self._path}/{folder}"
        if self._root.exists(target):
            self._root.remove_tree(target)

    def reserve(self, refs: Iterable[ArtifactRef]) -> None:
        """Write which artifacts the run will need; `Store.reserve` does it beside garbage collection."""
        self._write_json(RESERVED, {"artifacts": [[ref.stage, ref.key] for ref in sorted(set(refs))]})

    def record(self, refs: Iterable[ArtifactRef], meta: Mapping[str, Any]) -> None:
        """Write run.json, last: the run is complete.

        Args:
            refs: Artifacts the run is made of; they are kept from garbage collection.
            meta: Whatever else describes the run; JSON types only.
        """
        artifacts = [[ref.stage, ref.key] for ref in dict.fromkeys(refs)]
        self._write_json(RECORD, {"name": self.name, "artifacts": artifacts, "meta": plain(meta)})

    def read_record(self) -> dict[str, Any] | None:
        """The content of run.json; None when the run is not complete.

        Raises:
            StoreError: When it is damaged.
        """
        return self._read_json(RECORD)

    def references(self) -> set[ArtifactRef]:
        """Artifacts recorded or reserved.

        Raises:
            StoreError: When a record is damaged.
        """
        return self._listed(RECORD) | self._listed(RESERVED)

    def _listed(self, file: str) -> set[ArtifactRef]:
        content = self._read_json(file)
        try:
            return set() if content is None else {ArtifactRef(stage, key) for stage, key in content["artifacts"]}
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(file) from error

    def _write_json(self, file: str, content: Mapping[str, Any]) -> None:
        self.write_text(file, json.dumps(content, indent=1, sort_keys=True) + "\n")

    def _read_json(self, file: str) -> dict[str, Any] | None:
        data = self._root.read(f"{self._path}/{file}")
        if data is None:
            return None
        try:
            content = read_json(data)
        except ValueError as error:
            raise self._damaged(file) from error
        if not isinstance(content, dict):
            raise self._damaged(file)
        return content

    def _damaged(self, file: str) -> StoreError:
        return StoreError(f"{self.url}/{file} is not readable; delete the folder {self.url} or run that run again")
