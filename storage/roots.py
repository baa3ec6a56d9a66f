"""The place of a store: a folder or any fsspec URL, with every failure as a `StoreError` that says what to do."""

import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from popalign_core.errors import PopAlignError, StoreError
from storage.manifest import MANIFEST, FileRecord

TRASH = ".trash"
PARTIAL = ".partial"
"""How the name of a file ends while it is being written; nothing reads or publishes such a file."""

_BLOCK = 1 << 20

_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG)
"""Why a plain file cannot be opened: it is absent, or is a link, a socket, or no name at all."""

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again, finished shards are kept",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again, finished shards are kept",
    errno.EFBIG: "the file is larger than the system allows (see `ulimit -f`); raise the limit and run again",
    errno.EACCES: "no permission; give another --root or let this user write there",
    errno.EPERM: "no permission; give another --root or let this user write there",
    errno.EROFS: "the file system is read-only; give another --root",
    errno.ENOTDIR: "a file is where a folder should be; give another --root or move that file away",
    errno.EEXIST: "a file is where a folder should be; give another --root or move that file away",
}


def explain(error: BaseException) -> str:
    """What went wrong and what to do about it."""
    number = errno.ENOSPC if is_disk_full(error) else error.errno if isinstance(error, OSError) else None
    advice = _ADVICE.get(number or 0, "check the path, the credentials and the network, then run again")
    return f"{type(error).__name__}: {error}; {advice}"


def is_disk_full(error: BaseException) -> bool:
    """Whether the cause is a disk without space; safetensors and shutil say so in their text only."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or any(sign in str(error) for sign in ("(os error 28)", "[Errno 28]"))


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn whatever a backend raises into a `StoreError`; every fsspec backend has a family of its own."""
    try:
        yield
    except PopAlignError:
        raise
    except Exception as error:
        raise StoreError(f"cannot {action}: {explain(error)}").passing(is_of_network(error)) from error


def is_of_network(error: BaseException) -> bool:
    """Whether an error is of a network or a device that may answer again; not what is refused, full or not there."""
    if isinstance(error, OSError):
        refused = isinstance(error, PermissionError | FileNotFoundError | FileExistsError | IsADirectoryError)
        return not refused and not is_disk_full(error) and error.errno not in _ADVICE
    # the backends' clients have families of their own, such as botocore's EndpointConnectionError
    return any(sign in kind.__name__ for kind in type(error).__mro__ for sign in ("Connection", "Timeout"))


def write_atomic(path: Path, data: bytes) -> None:
    """Write a local file whole or not at all, and flush it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def digest_file(path: Path) -> FileRecord:
    """Size and sha256 of a local file."""
    with path.open("rb") as file:
        return FileRecord(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)


@dataclass(frozen=True)
class FileEntry:
    """A file as a listing has it.

    Attributes:
        size: Bytes.
        modified: When it was written last; None where the backend does not say.
    """

    size: int
    modified: datetime | None


class Root:
    """Files below one fsspec URL, by paths relative to it. One that is there and cannot be written can be read.

    Attributes:
        url: As given.
        path: The same for the file system: absolute when local.
        local: Whether it is a folder of this machine.
    """

    def __init__(self, url: str, *, create: bool = True, read_only: bool = False) -> None:
        """Open a place.

        Args:
            url: Of a folder or an object store.
            create: Whether one that is not there is made; else it is refused.
            read_only: Whether nothing will be written, so that no probe is written either; makes no place.

        Raises:
            StoreError: When it cannot be opened.
        """
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self.url = url
        with storage_errors(f"open the store root {url!r}"):
            # Another process may publish at any moment, so no listing may be remembered.
            filesystem, path = url_to_fs(url, use_listings_cache=False)
            self._fs: Any = filesystem
            self.path = str(path).rstrip("/") or "/"
            self.local = isinstance(filesystem, LocalFileSystem)
            if (read_only or not create) and not self.exists(""):
                raise StoreError(f"there is no store at {self.path}; give the --root of one")
            self._refusal = StoreError(f"{self.path} was opened to be read only") if read_only else self._probe()
            if self._refusal and not (Path(self.path).is_dir() if self.local else self.exists("")):
                raise self._refusal

    def _probe(self) -> StoreError | None:
        """Why nothing can be written here, if so: known from the start, not after hours of work."""
        name = f".probe-{uuid.uuid4().hex}"
        try:
            with storage_errors(f"write {self.at(name)}"):
                self._put(name, b"popalign")
                self._fs.rm_file(self.at(name))
        except StoreError as error:
            return error
        return None

    @property
    def is_writable(self) -> bool:
        """Whether a probe could be written when it was opened."""
        return self._refusal is None

    def check_writable(self) -> None:
        """Refuse before anything is written, or made to be.

        Raises:
            StoreError: When it cannot be written.
        """
        if self._refusal:
            raise self._refusal

    def at(self, path: str) -> str:
        """The path as the file system knows it."""
        return f"{self.path}/{path}" if path else self.path

    def read(self, path: str, most: int | None = None) -> bytes | None:
        """A file's bytes, or the first `most` of one that is not empty; None when there is no such file."""
        part = {} if most is None else {"start": 0, "end": most}  # s3fs asks for the size first where there is no end
        with storage_errors(f"read {self.at(path)}"):
            try:
                return bytes(self._fs.cat_file(self.at(path), **part))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all."""
        with storage_errors(f"write {self.at(path)}"):
            self._put(path, data)

    def _put(self, path: str, data: bytes) -> None:
        if self.local:
            write_atomic(Path(self.at(path)), data)
        else:
            self._fs.pipe_file(self.at(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object that must not exist yet; False when another writer was first."""
        with storage_errors(f"write {self.at(path)}"):
            try:
                self._fs.pipe_file(self.at(path), data, mode="create")
            except OSError:
                # Backends name a lost race differently; what counts is whether the object is there.
                if self._fs.exists(self.at(path)):
                    return False
                raise
            return True

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""
        with storage_errors(f"look for {self.at(path)}"):
            return bool(self._fs.exists(self.at(path)))

    def folders(self, path: str) -> list[str]:
        """Names of the folders right below a folder, sorted; hidden ones are left out."""
        with storage_errors(f"list {self.at(path)}"):
            if not self._fs.isdir(self.at(path)):
                return []
            entries = self._fs.ls(self.at(path), detail=True)
            names = {entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"}
            return sorted(name for name in names if not name.startswith("."))

    def files(self, path: str) -> dict[str, FileEntry]:
        """Files right below a folder by name; hidden ones and what is no plain file, such as a link, are left out."""
        with storage_errors(f"list {self.at(path)}"):
            if path and self.local and os.path.islink(self.at(path)):
                return {}
            try:
                entries = self._fs.ls(self.at(path), detail=True)
            except OSError as error:
                if _is_absent(error):
                    return {}
                raise
            start = f"{self.at(path)}/"
            found = {
                entry["name"].removeprefix(start): FileEntry(int(entry["size"] or 0), _modified(entry))
                for entry in entries
                if entry["type"] == "file" and entry["name"].startswith(start)
            }
            return {name: entry for name, entry in sorted(found.items()) if name and not name.startswith(".")}

    def open_plain(self, base: str, *parts: str) -> BinaryIO | None:
        """Open a plain file to be read; None when there is none. The caller closes it.

        Args:
            base: Folder to start at.
            parts: Names from there to the file, none of which may be a link: it could lead anywhere.
        """
        path = "/".join((base, *parts)).lstrip("/")
        with storage_errors(f"read {self.at(path)}"):
            try:
                if self.local:
                    return _open_unlinked(self.at(base), parts)
                file: BinaryIO = self._fs.open(self.at(path), "rb")
            except OSError as error:
                if _is_absent(error):
                    return None
                raise
            return file

    def entries(self, path: str) -> dict[str, FileEntry]:
        """Every file below a folder, by its path from there."""
        with storage_errors(f"list {self.at(path)}"):
            found = self._fs.find(self.at(path), detail=True)
            start = len(self.at(path)) + 1
            return {
                name[start:]: FileEntry(int(entry["size"]), _modified(entry)) for name, entry in sorted(found.items())
            }

    def sizes(self, path: str) -> dict[str, int]:
        """Every file below a folder, by its path from there, with its size in bytes."""
        return {name: entry.size for name, entry in self.entries(path).items()}

    def digest(self, path: str) -> FileRecord:
        """Size and sha256 of a file, read block by block."""
        digest, size = hashlib.sha256(), 0
        with self.open(path) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
        return FileRecord(digest.hexdigest(), size)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """A file to be read in parts."""
        with storage_errors(f"read {self.at(path)}"), self._fs.open(self.at(path), "rb") as file:
            yield file

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file here."""
        with storage_errors(f"upload {source} to {self.at(path)}"):
            self._fs.put_file(str(source), self.at(path))

    def download(self, path: str, target: Path) -> None:
        """Copy a file to this machine; it appears there whole or not at all."""
        with storage_errors(f"download {self.at(path)} to {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}{PARTIAL}")
            try:
                self._fs.get_file(self.at(path), str(partial))
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)

    def remove_tree(self, path: str) -> None:
        """Delete a folder so that no reader ever sees a manifest without its files."""
        with storage_errors(f"delete {self.at(path)}"):
            if self.local:
                trash = Path(self.at(TRASH)) / uuid.uuid4().hex
                trash.parent.mkdir(exist_ok=True)
                os.rename(self.at(path), trash)
                shutil.rmtree(trash, ignore_errors=True)  # what stays is garbage collection's
                return
            manifest = self.at(f"{path}/{MANIFEST}")
            if self._fs.exists(manifest):
                self._fs.rm_file(manifest)
            if self._fs.exists(self.at(path)):
                self._fs.rm(self.at(path), recursive=True)


def _is_absent(error: OSError) -> bool:
    """Whether there is no such file or folder; not every backend gives an errno."""
    return isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno in _NO_SUCH_FILE


def _modified(entry: dict[str, Any]) -> datetime | None:
    """When a file was written, as the backends say it: seconds of a local file, a time of an object."""
    found = entry.get("mtime", entry.get("LastModified"))
    if isinstance(found, int | float):
        return datetime.fromtimestamp(found, UTC)
    return found.astimezone(UTC) if isinstance(found, datetime) else None


def _open_unlinked(base: str, parts: tuple[str, ...]) -> BinaryIO | None:
    """Open name by name, so that nobody can put a link in between after it was looked at."""
    place = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for depth, part in enumerate(parts, start=1):
            kind = os.O_DIRECTORY if depth < len(parts) else os.O_NONBLOCK  # a pipe would be waited for
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=place)
            os.close(place)
            place = inner
        if not stat.S_ISREG(os.fstat(place).st_mode):
            os.close(place)
            return None
        return os.fdopen(place, "rb")
    except OSError:
        os.close(place)
        raise
