"""A full disk and a file size limit: a clear error, no hit, and the same build goes on when there is room again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from popalign_core.errors import StoreError
from storage.store import ArtifactRef, Store


@pytest.fixture
def small_disk(make_disk: Callable[[str], Path]) -> Path:
    """A file system of 512 KiB."""
    return make_disk("512k")


def large() -> pd.DataFrame:
    """A table of about a megabyte: hex digits of numbers do not compress to nothing."""
    ids = [f"{index * 2654435761 % 2**64:016x}" for index in range(60_000)]
    return pd.DataFrame(
        {"image_id": ids, "scorer": "clip", "version": "1", "unit": "points", "value": range(60_000)}
    ).astype({"value": float})


def fill(store: Store, ref: ArtifactRef, payload: dict[str, Any], shards: list[pd.DataFrame]) -> list[bool]:
    """Build from shards; which of them an earlier attempt had done."""
    with store.build(ref, payload) as build:
        done = [build.shard_done(number) for number in range(len(shards))]
        for number, shard in enumerate(shards):
            if not done[number]:
                build.write_table("scores", shard, shard=number)
                build.mark_shard(number, {"images": len(shard)})
    return done


def test_a_full_disk(small_disk: Path, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame) -> None:
    store = Store(str(small_disk / "store"))
    message = r"cannot write .*/scores-00001\.parquet: OSError.*the disk is full; free some space and run"
    with pytest.raises(StoreError, match=message):
        fill(store, ref, payload, [scores, large()])
    assert not store.is_published(ref)

    assert fill(store, ref, payload, [scores, scores]) == [True, False]
    assert store.verify() == []
    assert len(store.read_table(ref, "scores")) == 4


def test_a_disk_that_the_stage_itself_fills(
    small_disk: Path, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    store = Store(str(small_disk / "store"))
    message = r"cannot go on building scores/.* in .*: OSError.*; the disk is full; free some space"
    with pytest.raises(StoreError, match=message), store.build(ref, payload) as build:
        (build.folder / "weights.bin").write_bytes(bytes(2**20))
    assert not store.is_published(ref)


def test_safetensors_has_an_error_of_its_own(store: Store, ref: ArtifactRef, payload: dict[str, Any]) -> None:
    message = r"cannot go on building .*I/O error.*; the disk is full; free some space"
    with pytest.raises(StoreError, match=message), store.build(ref, payload):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_disk_that_is_full_at_publishing(
    small_disk: Path, tmp_path: Path, ref: ArtifactRef, payload: dict[str, Any]
) -> None:
    """Scratch has room, the root has not."""
    store = Store(str(small_disk / "store"), scratch=str(tmp_path / "scratch"))
    with (
        pytest.raises(StoreError, match=r"cannot publish scores/.*the disk is full"),
        store.build(ref, payload) as build,
    ):
        (build.folder / "weights.bin").write_bytes(bytes(2**20))
    assert not store.is_published(ref)
    assert store.list_artifacts() == []


LIMITED = """
import resource, sys
import pandas as pd
from storage.store import ArtifactRef, Store, StoreError

store = Store(sys.argv[1])
payload = {"stage": "scores", "version": "1", "config": {"scorer": "clip"}, "inputs": {}}
ref = ArtifactRef("scores", store.key(**payload))
ids = [f"{index * 2654435761 % 2**64:016x}" for index in range(60_000)]
frame = pd.DataFrame({"image_id": ids, "scorer": "clip", "version": "1", "unit": "points", "value": 0.5})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with store.build(ref, payload) as build:
        build.write_table("scores", frame)
except StoreError as error:
    print(error)
print(store.is_published(ref))
"""


def test_a_file_size_limit(spawn: Any, store: Store, ref: ArtifactRef) -> None:
    out, err = spawn(LIMITED, store.root).communicate(timeout=60)
    assert err == ""
    assert "scores.parquet: OSError: [Errno 27] File too large; the file is larger than the system allows" in out
    assert out.endswith("\nFalse\n")
    assert list(Path(store.root).rglob("*.parquet*")) == []
