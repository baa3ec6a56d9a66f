"""Reading published artifacts: cheap checks on a hit, full checksums whenever content is handed out."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from popalign_core.errors import StoreError
from storage.keys import ArtifactRef
from storage.manifest import MANIFEST, Manifest, parse_manifest
from storage.roots import Root, digest_file, storage_errors
from storage.scratch import Scratch

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Problem:
    """What `verify` found.

    Attributes:
        ref: The artifact.
        file: Path in it.
        what: Is wrong with that file.
    """

    ref: ArtifactRef
    file: str
    what: str


def read_manifest(root: Root, ref: ArtifactRef) -> Manifest | None:
    """The artifact's manifest; None when it is not published.

    Raises:
        StoreError: When the manifest is damaged or another artifact's.
    """
    data = root.read(f"{ref}/{MANIFEST}")
    if data is None:
        return None
    manifest = parse_manifest(data, root.at(f"{ref}/{MANIFEST}"))
    if (manifest.stage, manifest.key) != (ref.stage, ref.key):
        raise damaged(root, ref, MANIFEST, f"belongs to {manifest.stage}/{manifest.key}")
    return manifest


def size_problems(root: Root, manifest: Manifest) -> dict[str, str]:
    """File -> what is wrong, as far as one listing tells."""
    sizes = root.sizes(manifest.location(""))
    found = {}
    for file, record in manifest.files.items():
        if file not in sizes:
            found[file] = "is gone"
        elif sizes[file] != record.bytes:
            found[file] = f"has {sizes[file]} bytes instead of {record.bytes}"
    return found


def iter_arrow(
    root: Root, manifest: Manifest, name: str, columns: Sequence[str] | None = None, shard: int | None = None
) -> Iterator["pa.Table"]:
    """A table shard by shard, or one of them, each against its checksum and schema; all columns, or some.

    Raises:
        StoreError: When the table or the shard is absent, damaged, or of another schema version.
    """
    from storage.formats.parquet import decode

    ref = ArtifactRef(manifest.stage, manifest.key)
    files = _table_files(manifest, name)
    if shard is not None and shard >= len(files):
        raise StoreError(f"table {name!r} of {ref} has no shard {shard}; it has {len(files)} from 0 on")
    for file in files if shard is None else [files[shard]]:
        data = root.read(manifest.location(file))
        if data is None:
            raise damaged(root, ref, file, "is gone")
        if hashlib.sha256(data).hexdigest() != manifest.files[file].sha256:
            raise damaged(root, ref, file, "does not match its checksum")
        yield decode(name, data, root.at(manifest.location(file)), columns)


def rows_by_shard(root: Root, manifest: Manifest, name: str) -> list[int]:
    """Rows of each shard of a table, by the footers of its files: no checksum is compared.

    Raises:
        StoreError: When the table is absent, damaged, or of another schema version.
    """
    from storage.formats.parquet import count_rows

    counts = []
    for file in _table_files(manifest, name):
        with root.open(manifest.location(file)) as source:
            counts.append(count_rows(name, source, root.at(manifest.location(file))))
    return counts


def _table_files(manifest: Manifest, name: str) -> list[str]:
    from storage.formats.parquet import group_tables

    files = group_tables(manifest.files).get(name)
    if not files:
        raise StoreError(f"{manifest.stage}/{manifest.key} has no table {name!r}; it has {sorted(manifest.rows)}")
    return files


def localize(root: Root, scratch: Scratch, manifest: Manifest, path: str) -> Path:
    """A file or folder of an artifact on this machine, its checksums compared.

    Raises:
        StoreError: When it is absent or damaged.
    """
    ref = ArtifactRef(manifest.stage, manifest.key)
    files = [file for file in manifest.files if not path or file == path or file.startswith(f"{path}/")]
    if not files:
        raise StoreError(f"{ref} has no file or folder {path!r}; it has {sorted(manifest.files)}")
    folder = Path(root.at(str(ref))) if root.local else scratch.download(ref)
    for file in files:
        if not _is_intact(folder / file, manifest, file):
            if root.local or not root.exists(manifest.location(file)):
                raise damaged(
                    root, ref, file, "does not match its checksum" if (folder / file).is_file() else "is gone"
                )
            root.download(manifest.location(file), folder / file)
            if not _is_intact(folder / file, manifest, file):
                raise damaged(root, ref, file, "does not match its checksum")
    return folder / path


def verify_artifact(root: Root, ref: ArtifactRef) -> Iterator[Problem]:
    """Read every file of an artifact again and compare checksums."""
    try:
        manifest = read_manifest(root, ref)
    except StoreError as error:
        yield Problem(ref, MANIFEST, str(error))
        return
    if manifest is None:
        yield Problem(ref, MANIFEST, "is gone: the artifact counts as not published and will be computed again")
        return
    sizes = size_problems(root, manifest)
    for file, record in manifest.files.items():
        if file in sizes:
            yield Problem(ref, file, sizes[file])
        elif root.digest(manifest.location(file)) != record:
            yield Problem(ref, file, "does not match its checksum")


def damaged(root: Root, ref: ArtifactRef, file: str, what: str) -> StoreError:
    """The error for a file that is not what the manifest says."""
    return StoreError(
        f"artifact {ref} in {root.url} is damaged: {file} {what}; see all damage with `popalign verify`, then "
        f"delete the folder {root.at(str(ref))} and run again: what is missing is made again"
    )


def _is_intact(path: Path, manifest: Manifest, file: str) -> bool:
    with storage_errors(f"read {path}"):
        return path.is_file() and digest_file(path) == manifest.files[file]
