"""The end of a build: checksums, then the manifest, then the artifact is there, whole, or not at all."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from popalign_core.errors import StoreError
from storage.build import Build
from storage.file_modes import take_umask
from storage.keys import plain
from storage.manifest import MANIFEST, Manifest, library_versions
from storage.roots import PARTIAL, Root, storage_errors, write_atomic

INCOMING = ".incoming"
"""Where a local root takes in builds from a scratch folder on another disk."""


def publish_build(root: Root, build: Build, payload: Mapping[str, Any]) -> None:
    """Put a finished build into the store; the caller holds the key's lock.

    Args:
        root: Of the store.
        build: All its files written.
        payload: What the key is a hash of.

    Raises:
        StoreError: When a table does not fit, or the store cannot be written; nothing is published then.
    """
    rows = build.count_rows()
    files = build.digest_files()
    build.check_shards(files)
    manifest = Manifest(
        stage=build.ref.stage,
        key=build.ref.key,
        payload=plain(payload),
        files=files,
        schemas=_schemas(rows),
        rows=rows,
        counts=build.sum_counts(),
        libraries=library_versions(),
    )
    if root.local:
        with storage_errors(f"publish {build.ref} to {root.url}"):
            _move_into_place(root, build, manifest)
    else:
        _upload(root, build, manifest)


def _schemas(tables: Mapping[str, int]) -> dict[str, int]:
    if not tables:
        return {}
    from storage.formats.parquet import schema_versions

    return schema_versions(tables)


def _move_into_place(root: Root, build: Build, manifest: Manifest) -> None:
    """One rename makes the artifact appear: its manifest is written last, and the folder is not visible before that."""
    for leftover in build.folder.rglob(f"*{PARTIAL}"):
        leftover.unlink()
    target = f"{build.ref.stage}/{build.ref.key}"
    take_umask(build.folder)
    _flush(build.folder, manifest)
    write_atomic(build.folder / MANIFEST, manifest.to_json())
    if root.exists(f"{target}/{MANIFEST}"):
        return
    if root.exists(target):
        # What is left of an artifact whose manifest is gone.
        root.remove_tree(target)
    place = Path(root.at(target))
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(build.folder, place)
    except OSError as error:
        (build.folder / MANIFEST).unlink()
        if error.errno != errno.EXDEV:
            raise
        _copy_across(build.folder, Path(root.at(f"{INCOMING}/{target}")), manifest)
        os.rename(root.at(f"{INCOMING}/{target}"), place)
    _flush_path(place.parent)


def _copy_across(source: Path, incoming: Path, manifest: Manifest) -> None:
    """Scratch on another disk: a rename must start from a copy on this one."""
    if incoming.exists():
        shutil.rmtree(incoming)
    shutil.copytree(source, incoming)
    _flush(incoming, manifest)
    write_atomic(incoming / MANIFEST, manifest.to_json())


def _flush(folder: Path, manifest: Manifest) -> None:
    """Get files and folders onto the disk, so that a power cut cannot leave a manifest without them."""
    for file in manifest.files:
        _flush_path(folder / file)
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _flush_path(path)


def _flush_path(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _upload(root: Root, build: Build, manifest: Manifest) -> None:
    """Object stores cannot rename: every attempt has a prefix of its own, and the first manifest wins.

    Raises:
        StoreError: When an upload fails or arrives with another size.
    """
    target = f"{build.ref.stage}/{build.ref.key}"
    prefix = attempt_name()
    for file in manifest.files:
        root.upload(build.folder / file, f"{target}/{prefix}/{file}")
    arrived = root.sizes(f"{target}/{prefix}")
    wrong = [file for file, record in manifest.files.items() if arrived.get(file) != record.bytes]
    if wrong:
        raise StoreError(
            f"{wrong[0]} of {build.ref} was not uploaded completely to {root.url}; run the same command again"
        )
    ours = Manifest(**(vars(manifest) | {"prefix": prefix}))
    if not root.create(f"{target}/{MANIFEST}", ours.to_json()):
        root.remove_tree(f"{target}/{prefix}")


def attempt_name() -> str:
    """A folder for one upload; the time in it tells garbage collection how old a broken one is."""
    return f"attempt-{int(time.time())}-{uuid.uuid4().hex[:12]}"
