"""What people may read of a store's runs: pages, tables and records. Nothing is written, no link is followed."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import BinaryIO

from popalign_core.errors import StoreError
from storage.roots import FileEntry, Root, storage_errors
from storage.run_folder import RESERVED, RUNS

READABLE = (".html", ".md", ".json", ".csv", ".parquet")
"""How the names end of files that are meant to be read; weights are not among them."""
_BLOCK = 1 << 20
_MOST_TEXT = 16 << 20


class ReadableRuns:
    """The runs of a store, to be read alone: it is neither made nor probed.

    Attributes:
        url: As given.
    """

    def __init__(self, url: str) -> None:
        """Open a store.

        Raises:
            StoreError: When it is not there or cannot be opened.
        """
        self._root = Root(url, read_only=True)
        self.url = url

    @property
    def path(self) -> str:
        """Where it is: absolute when local."""
        return self._root.path if self._root.local else self.url

    def runs(self) -> dict[str, dict[str, FileEntry] | None]:
        """Folders below `runs/`, whatever they are called, each with its `files`; None where it cannot be looked into.

        Raises:
            StoreError: When the store cannot be read.
        """
        if self._root.local:
            return {name: self._try_files(name) for name in self._root.folders(RUNS)}
        found: dict[str, dict[str, FileEntry] | None] = {}
        # one request a thousand objects, in place of one a run
        for path, entry in self._root.entries(RUNS).items():
            run, _, file = path.partition("/")
            if file and _is_plain(run):
                files = found.setdefault(run, {})
                if files is not None and "/" not in file and _is_readable(file):
                    files[file] = entry
        return found

    def files(self, run: str | None) -> dict[str, FileEntry]:
        """Files of a run that are meant to be read, by name; without a run those of the store itself."""
        if run is not None and not _is_plain(run):
            return {}
        found = self._root.files("" if run is None else f"{RUNS}/{run}")
        return {name: entry for name, entry in found.items() if _is_readable(name)}

    def open(self, run: str | None, file: str) -> tuple[int, BinaryIO] | None:
        """The size of a file that is meant to be read, and the file, open; None when there is none.

        Args:
            run: Name of its folder; None is the store itself.
            file: Its name.
        """
        # one that is not listed is not opened, whatever its name makes of a path
        if file == RESERVED or file not in self.files(run):
            return None
        opened = self._root.open_plain("", file) if run is None else self._root.open_plain(RUNS, run, file)
        return None if opened is None else (opened.seek(0, os.SEEK_END), opened)

    def read_text(self, run: str, file: str) -> str | None:
        """A text of a run; None when there is none.

        Raises:
            StoreError: When it is no UTF-8 or far too long.
        """
        path = f"{RUNS}/{run}/{file}"
        if self._root.local:
            opened = self._root.open_plain(RUNS, run, file)
            with storage_errors(f"read {self._root.at(path)}"), opened or nullcontext():
                data = None if opened is None else opened.read(_MOST_TEXT + 1)
        else:
            data = self._root.read(path, _MOST_TEXT + 1)
        try:
            if data is None or len(data) <= _MOST_TEXT:
                return None if data is None else data.decode()
        except UnicodeDecodeError:
            pass
        raise StoreError(f"{self._root.at(path)} is not readable; delete it or run that run again")

    def _try_files(self, run: str) -> dict[str, FileEntry] | None:
        try:
            return self.files(run)
        except StoreError:  # such as a folder of another user
            return None


def iter_blocks(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of an open file from its start, which closes it."""
    with file:
        file.seek(0)
        while block := file.read(_BLOCK):
            yield block


def _is_readable(file: str) -> bool:
    return file.endswith(READABLE) and not file.startswith(".")


def _is_plain(name: str) -> bool:
    """Whether a name is one folder's, in whatever script."""
    return bool(name) and not name.startswith(".") and not any(sign in "/\\" or ord(sign) < 32 for sign in name)
