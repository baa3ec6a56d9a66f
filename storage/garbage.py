"""Garbage: artifacts no run refers to, broken uploads, and what killed builds left behind."""

import re
import shutil
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from storage.keys import ArtifactRef
from storage.manifest import MANIFEST
from storage.publish import INCOMING
from storage.reading import read_manifest
from storage.roots import TRASH, Root, storage_errors
from storage.run_folder import RUNS, RunFolder
from storage.scratch import Scratch

UPLOAD_GRACE_S = 24 * 3600
"""A broken upload younger than this may still be under way on another machine."""

_ATTEMPT = re.compile(r"attempt-(?P<time>\d+)-[0-9a-f]{12}")


@dataclass
class GarbageReport:
    """What garbage collection deleted, or would delete.

    Attributes:
        dry_run: Whether nothing was deleted.
        artifacts: Artifacts no run refers to.
        scratch: Folders of builds that no run waits for or that are published, and unneeded downloads.
        leftovers: Other folders below the root: broken uploads and copies, artifacts without a manifest, trash.
        busy: Artifacts left alone since a process works on them.
        freed_bytes: Size of all that.
    """

    dry_run: bool
    artifacts: list[ArtifactRef] = field(default_factory=list)
    scratch: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    busy: list[ArtifactRef] = field(default_factory=list)
    freed_bytes: int = 0


def collect(root: Root, scratch: Scratch, folders: Iterable[ArtifactRef], *, dry_run: bool) -> GarbageReport:
    """Delete what nothing refers to. Artifacts and builds that a run has recorded or reserved stay.

    Args:
        root: Of the store.
        scratch: Its folders on this machine.
        folders: Artifacts of the store, whole or in pieces.
        dry_run: Only say what would go.

    Raises:
        StoreError: When a run's record cannot be read: what it refers to is not known then, so nothing is deleted.
    """
    used = {ref for name in root.folders(RUNS) for ref in RunFolder(root, name).references()}
    report = GarbageReport(dry_run)
    copies = [
        ArtifactRef(stage, key) for stage in root.folders(INCOMING) for key in root.folders(f"{INCOMING}/{stage}")
    ]
    for ref in sorted({*folders, *scratch.refs(), *copies}):
        try:
            # a read-only store has no other writers and cannot hold a lock
            with nullcontext() if dry_run and not root.is_writable else scratch.lock(ref, wait=False):
                published = _collect_artifact(root, ref, ref in used, report)
                _collect_scratch(scratch, ref, ref in used, published, report)
        except TimeoutError:
            report.busy.append(ref)
    _collect_trash(root, report)
    return report


def _collect_artifact(root: Root, ref: ArtifactRef, used: bool, report: GarbageReport) -> bool:
    """Delete what goes of one artifact's folder; whether it was published."""
    published = root.exists(f"{ref}/{MANIFEST}")
    if published and not used:
        report.artifacts.append(ref)
        _delete(root, str(ref), report)
    elif root.local:
        leftovers = [f"{INCOMING}/{ref}"] if published else [f"{INCOMING}/{ref}", str(ref)]
        _delete_leftovers(root, leftovers, report)
    else:
        _delete_leftovers(root, _broken_uploads(root, ref), report)
    return published


def _delete_leftovers(root: Root, paths: Iterable[str], report: GarbageReport) -> None:
    for path in paths:
        if root.exists(path):
            report.leftovers.append(root.at(path))
            _delete(root, path, report)


def _broken_uploads(root: Root, ref: ArtifactRef) -> list[str]:
    manifest = read_manifest(root, ref)
    keep = manifest.prefix if manifest else ""
    found = [(name, _ATTEMPT.fullmatch(name)) for name in root.folders(str(ref)) if name != keep]
    old = time.time() - UPLOAD_GRACE_S
    return [f"{ref}/{name}" for name, match in found if match and int(match["time"]) < old]


def _collect_scratch(scratch: Scratch, ref: ArtifactRef, used: bool, published: bool, report: GarbageReport) -> None:
    # A used key without an artifact is a run that was killed: its finished shards will be wanted.
    stale = [scratch.build(ref)] if published or not used else []
    stale += [] if used else [scratch.download(ref)]
    for folder in stale:
        if folder.is_dir():
            report.scratch.append(str(folder))
            _delete_local(folder, report)


def _collect_trash(root: Root, report: GarbageReport) -> None:
    """What a deletion that was killed left."""
    trash = Path(root.at(TRASH))
    if root.local and trash.is_dir():
        for folder in sorted(trash.iterdir()):
            report.leftovers.append(str(folder))
            _delete_local(folder, report)


def _delete(root: Root, path: str, report: GarbageReport) -> None:
    report.freed_bytes += sum(root.sizes(path).values())
    if not report.dry_run:
        root.remove_tree(path)


def _delete_local(folder: Path, report: GarbageReport) -> None:
    # what another process takes out of the trash meanwhile need not be deleted twice
    with storage_errors(f"delete {folder}"), suppress(FileNotFoundError):
        report.freed_bytes += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if not report.dry_run:
            shutil.rmtree(folder)
