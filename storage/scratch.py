"""The store's folder on this machine: builds under way, downloads from an object store, locks between processes."""

import hashlib
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from popalign_core.errors import StoreError
from storage.keys import ArtifactRef
from storage.roots import Root, storage_errors

_log = logging.getLogger("popalign.storage")


class Scratch:
    """Folders of one root on this machine.

    Args:
        root: Of the store.
        folder: Local folder; beside the artifacts (for an object store in the user's cache folder) when not given.
    """

    def __init__(self, root: Root, folder: str | None) -> None:
        if folder is None and root.local:
            self._folder = Path(root.at(".scratch"))
        else:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "popalign"
            base = Path(folder).expanduser().absolute() if folder else cache
            # Each root has a folder of its own: two roots may hold the same key.
            self._folder = base / hashlib.sha256(root.path.encode()).hexdigest()[:16]
        # Processes that share a root need the same locks, whatever scratch each was given.
        self._locks = Path(root.at(".locks")) if root.local else self._folder / "locks"

    def build(self, ref: ArtifactRef) -> Path:
        """Where an artifact is built."""
        return self._folder / "builds" / str(ref)

    def download(self, ref: ArtifactRef) -> Path:
        """Where an artifact's files from an object store are kept."""
        return self._folder / "downloads" / str(ref)

    def refs(self) -> set[ArtifactRef]:
        """Artifacts with a build or a download here."""
        found = set()
        for path in [*self._folder.glob("builds/*/*"), *self._folder.glob("downloads/*/*")]:
            try:
                found.add(ArtifactRef(path.parent.name, path.name))
            except StoreError:
                continue  # not a folder of ours
        return found

    @contextmanager
    def lock(self, ref: ArtifactRef, *, wait: bool = True) -> Iterator[None]:
        """Hold an artifact's lock between processes; the system releases it when the process dies.

        Raises:
            StoreError: When the lock file cannot be made.
            TimeoutError: When another process has the lock and `wait` is false.
        """
        with self._hold(self._locks / ref.stage / f"{ref.key}.lock", f"works on {ref}", wait=wait):
            yield

    @contextmanager
    def lock_reservations(self) -> Iterator[None]:
        """Hold what keeps garbage collection and new reservations apart: what is reserved is there, or is made again.

        Raises:
            StoreError: When the lock file cannot be made.
        """
        with self._hold(self._locks / "reservations.lock", "collects garbage or reserves"):
            yield

    @contextmanager
    def _hold(self, path: Path, doing: str, *, wait: bool = True) -> Iterator[None]:
        from filelock import FileLock, Timeout

        with storage_errors(f"make the lock {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            with suppress(Timeout):
                lock.acquire(timeout=0)
        owner = path.with_suffix(".owner")
        if not lock.is_locked:
            who = _read_owner(owner)
            if not wait:
                raise TimeoutError(f"{who} {doing}")
            _log.warning("waiting for %s, which %s", who, doing)
            lock.acquire()
        try:
            with suppress(OSError):  # it is for messages alone
                owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()


def _read_owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()[:200] or "another process"
    except (OSError, ValueError):
        return "another process"
