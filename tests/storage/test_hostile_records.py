"""Records of another version, or of nobody: each command of the store names them and goes on or stops."""

import json
from pathlib import Path

import pytest

from popalign_core.errors import StoreError
from storage.manifest import MANIFEST, _checksum, parse_manifest
from storage.store import ArtifactRef, Store

DEEP = b"[" * 100_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def publish(store: Store) -> ArtifactRef:
    key = store.key("prompts", "1", {}, {})
    ref = ArtifactRef("prompts", key)
    with store.build(ref, {"stage": "prompts", "version": "1", "config": {}, "inputs": {}}) as build:
        (build.folder / "note.txt").write_text("x")
    return ref


def manifest_with(store: Store, ref: ArtifactRef, **fields: object) -> bytes:
    body = json.loads((Path(store.root) / str(ref) / MANIFEST).read_bytes())
    body.pop("checksum")
    body.pop("signed_by", None)
    body |= fields
    return json.dumps(body | {"checksum": _checksum(body)}).encode()


def test_a_manifest_of_a_newer_store(store: Store) -> None:
    """Verify counts it among the problems; a run names the version."""
    ref = publish(store)
    place = Path(store.root) / str(ref) / MANIFEST
    for fields, problem in (
        ({"format": 2, "signed_by": "us"}, "has format 2, this version reads 1; use the version that wrote it"),
        ({"format": 1, "signed_by": "us"}, "has unknown fields"),
        (
            {"format": 1, "files": {"note.txt": {"sha256": "0", "bytes": 1, "mode": 7}}},
            "has unknown fields",
        ),
        ({"format": 1, "files": ["note.txt"]}, "has unknown fields"),
    ):
        place.write_bytes(manifest_with(store, ref, **fields))
        with pytest.raises(StoreError, match=problem):
            store.is_published(ref)
        found = list(store.verify())
        assert [(each.ref, each.file) for each in found] == [(ref, MANIFEST)]
        assert problem in found[0].what


@pytest.mark.parametrize("data", [DEEP, b'{"checksum": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"[]", b'{"checksum": 1}'])
def test_a_manifest_of_nobody(data: bytes, store: Store) -> None:
    ref = publish(store)
    (Path(store.root) / str(ref) / MANIFEST).write_bytes(data)
    assert [each.file for each in store.verify()] == [MANIFEST]
    with pytest.raises(StoreError, match="is not a manifest") as caught:
        parse_manifest(data, "here")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["reserved.json", "run.json"])
@pytest.mark.parametrize(
    "data", [DEEP, b'{"artifacts": [' + b"9" * 5000 + b"]}", b'{"artifacts": [["a"]]}', b"\xff", b"[]"]
)
def test_a_run_whose_record_cannot_be_read(name: str, data: bytes, store: Store) -> None:
    """What it refers to is not known, so that nothing is deleted."""
    ref = publish(store)
    (Path(store.root) / "runs" / "mine").mkdir(parents=True)
    (Path(store.root) / "runs" / "mine" / name).write_bytes(data)
    with pytest.raises(StoreError, match=rf"runs/mine/{name} is not readable; delete the folder"):
        store.collect_garbage(dry_run=False)
    assert store.is_published(ref)


def test_a_run_folder_with_bytes_for_text(store: Store) -> None:
    folder = store.run_folder("mine")
    folder.write_bytes("report.md", b"\xff\xfe")
    with pytest.raises(StoreError, match=r"report\.md is not readable"):
        folder.read_text("report.md")
