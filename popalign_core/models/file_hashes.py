"""Hashes of files, remembered for as long as the files do not change. Imports no torch."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from popalign_core.machine import cache_folder

# Weights and everything that decides what they compute: configs, tokenizer vocabularies and merges.
HASHED_SUFFIXES = (".safetensors", ".json", ".txt")
_DIGITS = 64


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    return kept_hash("file", [path], lambda: _read_hash(path))


def hash_folder(folder: Path, suffixes: Collection[str] | None = HASHED_SUFFIXES) -> str:
    """sha256 over names and bytes of a folder's weight and configuration files, or with None of all its files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file() and (suffixes is None or path.suffix in suffixes):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


def kept_hash(kind: str, files: Iterable[Path], compute: Callable[[], str]) -> str:
    """What `compute` made of files once: read from the cache folder while none of them has changed.

    A model has gigabytes, and every command needs its hash. A file counts as unchanged while place, size and both its
    times are; the time of its entry cannot be set back.

    Args:
        kind: Of the hash: others of the same files are kept beside it.
        files: All that it rests on.
        compute: Makes 64 hexadecimal digits.
    """
    facts = [kind]
    for path in files:
        status = path.stat()
        facts.append(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}")
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    if (found := _MADE.get(name)) is None:
        kept = cache_folder() / "hashes" / name
        found = _read_kept(kept)
        if found is None:
            found = compute()
            _keep(kept, found)
        _MADE[name] = found
    return found


_MADE: dict[str, str] = {}
"""Of this process: a command asks for the same hash many times."""


def _read_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_kept(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if len(text) == _DIGITS and set(text) <= set("0123456789abcdef") else None


def _keep(path: Path, found: str) -> None:
    """Whole or not at all; a cache folder that cannot be written costs time, no more."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(found)
        os.replace(partial, path)
