"""The artifact store: keys, manifests, atomic publishing, Parquet schemas, image shards. No stage logic."""

from storage.build import Build
from storage.garbage import GarbageReport
from storage.keys import ArtifactRef
from storage.manifest import FileRecord, Manifest
from storage.reading import Problem
from storage.run_folder import RunFolder
from storage.store import Store

__all__ = ["ArtifactRef", "Build", "FileRecord", "GarbageReport", "Manifest", "Problem", "RunFolder", "Store"]
