"""`manifest.json`: what an artifact is made from and of. It comes last: its existence means complete."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

from popalign_core.documents import read_json
from popalign_core.errors import StoreError
from storage.keys import canonical_json

MANIFEST = "manifest.json"
FORMAT = 1

_LIBRARIES = (
    "popalign",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "deepface",
)


@dataclass(frozen=True)
class FileRecord:
    """What a file must be.

    Attributes:
        sha256: Hex digest of its content.
        bytes: Its size.
    """

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The description of a published artifact.

    Attributes:
        stage: Of the artifact.
        key: Of the artifact.
        payload: What the key is a hash of: stage, version, config, inputs, and a revision above 0.
        schemas: Table -> version of its schema.
        rows: Table -> number of rows, over all shards.
        counts: What the shards counted, summed.
        files: Path in the artifact -> size and checksum.
        libraries: Library -> version that wrote the artifact.
        prefix: Folder of the artifact that holds the files; "" unless on an object store.
    """

    stage: str
    key: str
    payload: dict[str, Any]
    files: dict[str, FileRecord]
    schemas: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    prefix: str = ""

    def location(self, file: str) -> str:
        """Path of one of its files from the root of the store."""
        return "/".join(part for part in (self.stage, self.key, self.prefix, file) if part)

    def to_json(self) -> bytes:
        """The text of the manifest, with a checksum of its own."""
        body = asdict(self) | {"format": FORMAT}
        return json.dumps(body | {"checksum": _checksum(body)}, sort_keys=True, indent=1).encode() + b"\n"


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest.

    Args:
        data: Bytes of the file.
        where: The file, for the message.

    Raises:
        StoreError: When it is torn or altered, or another version of the program wrote it.
    """
    try:
        body = read_json(data)
        checksum, version = body.pop("checksum"), body["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{where} is damaged: it is not a manifest ({error!r:.200}); {_advice(where)}") from error
    # before the checksum, which another format may make otherwise
    if version != FORMAT:
        raise StoreError(
            f"{where} has format {version!r:.20}, this version reads {FORMAT}; use the version that wrote it"
        )
    if checksum != _checksum(body):
        raise StoreError(f"{where} is damaged: its content does not match its own checksum; {_advice(where)}")
    del body["format"]
    try:
        files = {path: FileRecord(**record) for path, record in body.pop("files").items()}
        return Manifest(files=files, **body)
    except (TypeError, AttributeError, KeyError) as error:
        raise StoreError(
            f"{where} is intact, but has unknown fields ({error}); use the version that wrote it"
        ) from error


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide results, without importing them."""
    return dict(_library_versions())


@cache
def _library_versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def _advice(where: str) -> str:
    return f"delete the folder {where.rpartition('/')[0]} and run the same command again"
