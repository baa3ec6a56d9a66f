"""What was fetched: a small file beside the downloads holds each one's sha256, so that it cannot change unnoticed."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from popalign_core.documents import read_json
from popalign_core.errors import StoreError

RECORD_FILE = "popalign-files.json"
_CHUNK_BYTES = 1 << 22


def read_record(home: Path) -> dict[str, Any]:
    """The record of a folder, by the names of files; empty where there is none.

    Raises:
        StoreError: When it is no record.
    """
    try:
        record: Any = read_json((home / RECORD_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        record = error
    if not isinstance(record, dict) or not all(isinstance(entry, dict) for entry in record.values()):
        raise StoreError(
            f"{home / RECORD_FILE} is not a record of downloaded files; delete it, and it is written again"
        )
    return record


def write_record(home: Path, name: str, sha256: str, url: str) -> None:
    """Note what a file is; the caller holds the folder's lock."""
    record = read_record(home) | {name: {"sha256": sha256, "url": url}}
    unfinished = home / f"{RECORD_FILE}.new"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(home / RECORD_FILE)


@contextmanager
def hold_folder(home: Path) -> Iterator[None]:
    """One process at a time fetches into a folder; the kernel frees it when that process dies.

    Raises:
        StoreError: When another one does.
    """
    home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home / ".popalign-fetch.lock", blocking=False):
            yield
    except Timeout as error:
        raise StoreError(f"another `popalign fetch` writes into {home}; wait until it is done") from error


def digests_of(file: Path) -> dict[str, str]:
    """Both digests of a file that the hub may know: `sha256`, and `git-sha1` of small files."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha256.update(chunk)
            git.update(chunk)
    return {"sha256": sha256.hexdigest(), "git-sha1": git.hexdigest()}
