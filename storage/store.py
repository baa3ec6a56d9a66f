"""The artifact store: find, build, publish, read and check artifacts below one root.

Layout: `<root>/<stage>/<key>/` holds an artifact, `<root>/runs/<name>/` the end of a run, `<root>/models/` where base
models lay. Hidden folders are the store's own: `.revisions` (forced new versions), `.locks`, `.scratch` (builds under
way), `.incoming`, `.trash`.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import TYPE_CHECKING, Any

from popalign_core.errors import StoreError
from storage import reading
from storage.build import Build
from storage.garbage import GarbageReport, collect
from storage.keys import PAYLOAD_FIELDS, ArtifactRef, is_key, key_of, key_payload
from storage.manifest import MANIFEST, Manifest
from storage.model_records import ModelRecords
from storage.publish import publish_build
from storage.reading import Problem
from storage.roots import Root, is_disk_full, storage_errors
from storage.run_folder import RUNS, RunFolder
from storage.scratch import Scratch

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = ["ArtifactRef", "Build", "GarbageReport", "Manifest", "Problem", "RunFolder", "Store"]

REVISIONS = ".revisions"


class Store:
    """Artifacts below one root.

    Args:
        root: A folder, or any fsspec URL such as `s3://bucket/prefix`.
        scratch: Local folder for builds under way and downloads; beside the artifacts (for an object store in the
            user's cache folder) when not given.
        create: Whether a root that is not there is made; else it is refused.

    Raises:
        StoreError: When the root cannot be opened, or is not there and cannot be made.
    """

    def __init__(self, root: str, scratch: str | None = None, *, create: bool = True) -> None:
        self.root = root
        self._root = Root(root, create=create)
        self._scratch = Scratch(self._root, scratch)

    def check_writable(self) -> None:
        """Refuse a store that can only be read.

        Raises:
            StoreError: Says why nothing can be written.
        """
        self._root.check_writable()

    def key(self, stage: str, version: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
        """The key of an artifact; after `bump`, the key of its next version.

        Args:
            stage: Name of the stage.
            version: The stage's VERSION.
            config: What of the configuration changes the result; JSON types only.
            inputs: Name of an input -> its artifact's key.

        Raises:
            StoreError: When the configuration holds something that is not JSON.
        """
        payloads = self._versions(key_payload(stage, version, config, inputs))
        return [key_of(payload) for payload in payloads][-1]

    def bump(self, stage: str, base_key: str) -> None:
        """Make `key` give a new key instead of this one; the artifact with this key is kept.

        Args:
            stage: Of the artifact.
            base_key: What `key` gives now.
        """
        self._root.write(f"{REVISIONS}/{ArtifactRef(stage, base_key)}", b"superseded\n")

    def is_published(self, ref: ArtifactRef) -> bool:
        """Whether the artifact is there, whole as far as file sizes tell.

        Raises:
            StoreError: When it is there and a file is gone or has another size, or the manifest is damaged.
        """
        manifest = reading.read_manifest(self._root, ref)
        if manifest is None:
            return False
        for file, what in reading.size_problems(self._root, manifest).items():
            raise reading.damaged(self._root, ref, file, what)
        return True

    @contextmanager
    def build(self, ref: ArtifactRef, payload: Mapping[str, Any]) -> Iterator[Build]:
        """Build an artifact and publish it when the block ends well.

        One process at a time builds a key; another one waits, then finds `already_published`. What the block wrote
        before an error or a kill is there again at the next attempt.

        Args:
            ref: Its stage and key.
            payload: What the key is a hash of.

        Raises:
            StoreError: When the store cannot be written, or a table does not fit; nothing is published then.
        """
        self.check_writable()
        payload = self._with_revision(ref, payload)
        home = self._scratch.build(ref)
        with self._scratch.lock(ref):
            build = Build(ref, home, self.is_published(ref))
            try:
                yield build
            except Exception as error:
                if isinstance(error, StoreError) or not is_disk_full(error):
                    raise
                with storage_errors(f"go on building {ref} in {home}"):
                    raise
            if not build.already_published:
                publish_build(self._root, build, payload)
            shutil.rmtree(home, ignore_errors=True)

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The artifact's manifest.

        Raises:
            StoreError: When the artifact is not published or its manifest is damaged.
        """
        manifest = reading.read_manifest(self._root, ref)
        if manifest is None:
            raise StoreError(f"{ref} is not in {self.root}; run `popalign stage {ref.stage}` to make it")
        return manifest

    def read_table(
        self, ref: ArtifactRef, name: str, columns: Sequence[str] | None = None, shard: int | None = None
    ) -> "pd.DataFrame":
        """All rows of a table, shards in order, or those of one shard; all columns, or some.

        Raises:
            StoreError: When the table or the shard is absent, damaged, or of another schema version.
        """
        from storage.formats.parquet import to_frame

        return to_frame(reading.iter_arrow(self._root, self.manifest(ref), name, columns, shard))

    def rows_by_shard(self, ref: ArtifactRef, name: str) -> list[int]:
        """How many rows each shard of a table has; reads little of it. Raises as `read_table` does."""
        return reading.rows_by_shard(self._root, self.manifest(ref), name)

    def iter_table(self, ref: ArtifactRef, name: str, columns: Sequence[str] | None = None) -> Iterator["pd.DataFrame"]:
        """A table shard by shard; raises as `read_table` does, when it gets there."""
        from storage.formats.parquet import to_frame

        for table in reading.iter_arrow(self._root, self.manifest(ref), name, columns):
            yield to_frame([table])

    def localize(self, ref: ArtifactRef, path: str = "") -> "Path":
        """A file or folder of an artifact on this machine, its checksums compared.

        Args:
            ref: The artifact.
            path: In the artifact; the whole of it when empty.

        Returns:
            Its place: in the store itself for a local root, so do not write there.

        Raises:
            StoreError: When it is absent or damaged.
        """
        return reading.localize(self._root, self._scratch, self.manifest(ref), path.strip("/"))

    def verify(self, ref: ArtifactRef | None = None) -> list[Problem]:
        """Read an artifact again, or all of them, and compare every checksum."""
        # A folder without a manifest is damage on a disk; on an object store another machine may be uploading just now.
        everything = self._folders() if self._root.local else self.list_artifacts()
        refs = [ref] if ref else everything
        return [problem for each in refs for problem in reading.verify_artifact(self._root, each)]

    def collect_garbage(self, *, dry_run: bool) -> GarbageReport:
        """Delete artifacts that no run has recorded or reserved, and what killed builds and uploads left.

        Raises:
            StoreError: When a run's record cannot be read; nothing is deleted then.
        """
        # a dry run deletes nothing that could have been reserved meanwhile, and may be of a store that is read alone
        with nullcontext() if dry_run else self._scratch.lock_reservations():
            return collect(self._root, self._scratch, self._folders(), dry_run=dry_run)

    def reserve(self, run: str, refs: Iterable[ArtifactRef]) -> None:
        """Say which artifacts a run will use or make, before it looks whether they are there.

        A collection that is under way is waited for: it knows of no reservation that was made after it began.

        Raises:
            StoreError: When the name cannot be a folder's, or the store cannot be written.
        """
        with self._scratch.lock_reservations():
            self.run_folder(run).reserve(refs)

    def list_artifacts(self) -> list[ArtifactRef]:
        """Every published artifact, sorted."""
        return [ref for ref in self._folders() if self._root.exists(f"{ref}/{MANIFEST}")]

    def run_names(self) -> list[str]:
        """Names of the folders below `runs/`, complete or not."""
        return sorted(self._root.folders(RUNS))

    def run_folder(self, name: str) -> RunFolder:
        """The folder `<root>/runs/<name>/`.

        Raises:
            StoreError: When the name cannot be a folder's.
        """
        return RunFolder(self._root, name)

    def model_records(self) -> ModelRecords:
        """What is remembered of base models, in `<root>/models/`."""
        return ModelRecords(self._root)

    def _folders(self) -> list[ArtifactRef]:
        """Artifacts, whole or in pieces: folders named like a key, so that nothing of the user's is ever touched."""
        stages = [stage for stage in self._root.folders("") if stage != RUNS]
        return [ArtifactRef(stage, key) for stage in stages for key in self._root.folders(stage) if is_key(stage, key)]

    def _versions(self, payload: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The payload of the first version, of every forced one after it, the current one last."""
        for revision in count():
            version = dict(payload) | ({"revision": revision} if revision else {})
            yield version
            if not self._root.exists(f"{REVISIONS}/{payload['stage']}/{key_of(version)}"):
                return

    def _with_revision(self, ref: ArtifactRef, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """The payload with the revision that leads to this key; a payload that is no key's stays as it is.

        Raises:
            StoreError: When a complete payload leads to no version of this key.
        """
        if set(payload) != PAYLOAD_FIELDS:
            return payload
        for version in self._versions(payload):
            if key_of(version) == ref.key:
                return version
        raise StoreError(f"the payload given for {ref} has the key {key_of(payload)}; build under that key")
