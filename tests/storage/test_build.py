"""Builds survive kills, and two processes at once end well with one result. The processes here are real."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from popalign_core.errors import StoreError
from storage.store import ArtifactRef, Build, Store

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = """
import os, signal, sys, time
import pandas as pd
from storage.store import ArtifactRef, Store

root, log, mode = sys.argv[1:4]
store = Store(root)
payload = {"stage": "scores", "version": "1", "config": {"scorer": "clip"}, "inputs": {}}
ref = ArtifactRef("scores", store.key(**payload))
with store.build(ref, payload) as build:
    print("already" if build.already_published else "building", flush=True)
    for shard in range(0 if build.already_published else 4):
        if build.shard_done(shard):
            continue
        with open(log, "a") as file:
            file.write(f"{shard}\\n")
        who = {"scorer": "clip", "version": "1", "unit": "points"}
        frame = pd.DataFrame({"image_id": [f"i{shard}"]} | who | {"value": [float(shard)]})
        build.write_table("scores", frame, shard=shard)
        if mode == "kill-between" and shard == 2:
            os.kill(os.getpid(), signal.SIGKILL)  # written, not marked
        build.mark_shard(shard, {"images": 1})
        if mode == "slow":
            time.sleep(0.1)
        if mode == "kill-after" and shard == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    if mode == "kill-at-the-end":
        from storage import publish
        publish.os.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def run(spawn: Any, store: Store, log: Path, mode: str) -> tuple[int, str]:
    process = spawn(WORKER, store.root, log, mode)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode, out.strip()


def drawn(log: Path) -> list[int]:
    return [int(line) for line in log.read_text(encoding="utf-8").split()]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Of a build that nothing disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    store = Store(str(folder / "store"))
    subprocess.run([sys.executable, "-c", WORKER, store.root, folder / "log", "plain"], cwd=REPOSITORY, check=True)
    return store


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("kill-after", [0, 1, 2, 3]),
        ("kill-between", [0, 1, 2, 2, 3]),  # a shard that is not marked is done again, and no other
        ("kill-at-the-end", [0, 1, 2, 3]),
    ],
)
def test_a_killed_build_goes_on(
    spawn: Any, store: Store, calm: Store, ref: ArtifactRef, log: Path, mode: str, expected: list[int]
) -> None:
    assert run(spawn, store, log, mode) == (-signal.SIGKILL, "building")
    assert not store.is_published(ref)
    assert run(spawn, store, log, "plain") == (0, "building")
    assert drawn(log) == expected
    assert store.read_table(ref, "scores")["value"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert store.verify() == []

    files = sorted(calm.localize(ref).iterdir())
    assert [(path.name, path.read_bytes()) for path in files] == [
        (path.name, path.read_bytes()) for path in sorted(store.localize(ref).iterdir())
    ]


def test_two_processes_at_once_end_well_with_one_result(spawn: Any, store: Store, ref: ArtifactRef, log: Path) -> None:
    processes = [spawn(WORKER, store.root, log, "slow") for _ in range(3)]
    outs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outs
    assert sorted(out.strip() for out, _ in outs) == ["already", "already", "building"]
    assert drawn(log) == [0, 1, 2, 3]
    assert store.read_table(ref, "scores")["value"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert store.verify() == []


def test_a_process_that_waits_takes_over_from_one_that_is_killed(
    spawn: Any, store: Store, ref: ArtifactRef, log: Path
) -> None:
    first = spawn(WORKER, store.root, log, "slow")
    assert first.stdout.readline() == "building\n"
    second = spawn(WORKER, store.root, log, "plain")
    deadline = time.monotonic() + 30
    while not (log.exists() and log.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.kill()
    first.communicate(timeout=60)
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (0, "building\n"), err
    assert store.read_table(ref, "scores")["value"].tolist() == [0.0, 1.0, 2.0, 3.0]


class Interrupted(Exception):
    """What ends an attempt in these tests."""


@contextmanager
def attempt(store: Store, ref: ArtifactRef, payload: dict[str, Any]) -> Iterator[Build]:
    """A build that fails at its end."""
    with suppress(Interrupted), store.build(ref, payload) as build:
        yield build
        raise Interrupted


@pytest.fixture
def half_built(store: Store, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame) -> ArtifactRef:
    """Two marked shards, each a table and a file beside it; then the stage failed."""
    with attempt(store, ref, payload) as build:
        for shard in range(2):
            build.write_table("scores", scores, shard=shard)
            (build.folder / f"latents-{shard:05d}.safetensors").write_bytes(b"latents %d" % shard)
            build.mark_shard(shard, {"images": 2, "dropped": shard})
        (build.work / "checkpoint").write_bytes(b"step 5")
    return ref


def scratch(store: Store, ref: ArtifactRef) -> Path:
    return Path(store.root) / ".scratch" / "builds" / str(ref)


def test_an_error_publishes_nothing_and_keeps_what_is_done(
    store: Store, half_built: ArtifactRef, payload: dict[str, Any]
) -> None:
    assert not store.is_published(half_built)
    with store.build(half_built, payload) as build:
        assert [build.shard_done(shard) for shard in range(3)] == [True, True, False]
        assert len(build.read_table("scores")) == 4
        both = [build.read_table("scores", shard) for shard in (0, 1)]
        pd.testing.assert_frame_equal(pd.concat(both, ignore_index=True), build.read_table("scores"))
        with pytest.raises(StoreError, match=r"has no table 'scores' yet; write it first"):
            build.read_table("scores", 2)
        assert (build.work / "checkpoint").read_bytes() == b"step 5"
    manifest = store.manifest(half_built)
    assert manifest.counts == {"images": 4, "dropped": 1}
    assert "checkpoint" not in str(sorted(manifest.files))
    assert not scratch(store, half_built).exists()


@pytest.mark.parametrize("file", ["scores-00001.parquet", "latents-00001.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"X" + path.read_bytes()[1:]),
    ],
)
def test_a_torn_or_altered_shard_counts_as_not_done(
    store: Store, half_built: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame, file: str, damage: Any
) -> None:
    damage(scratch(store, half_built) / "files" / file)
    with store.build(half_built, payload) as build:
        assert [build.shard_done(shard) for shard in range(2)] == [True, False]
        build.write_table("scores", scores, shard=1)
        (build.folder / "latents-00001.safetensors").write_bytes(b"latents 1")
        build.mark_shard(1, {"images": 2, "dropped": 1})
    assert store.verify() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 3}', b'{"files": {"x": {}}}', b'{"files": {}}'])
def test_a_torn_marker_counts_as_not_done(
    store: Store, half_built: ArtifactRef, payload: dict[str, Any], content: bytes
) -> None:
    (scratch(store, half_built) / "shards" / "00001.json").write_bytes(content)
    with attempt(store, half_built, payload) as build:
        assert [build.shard_done(shard) for shard in range(2)] == [True, False]


def test_a_shard_altered_after_its_marker_is_not_published(
    store: Store, half_built: ArtifactRef, payload: dict[str, Any]
) -> None:
    message = r"latents-00000\.safetensors is not what shard 00000 was marked with; run the same command again"
    with pytest.raises(StoreError, match=message), store.build(half_built, payload) as build:
        (build.folder / "latents-00000.safetensors").write_bytes(b"latents X")
    assert not store.is_published(half_built)
    with attempt(store, half_built, payload) as build, pytest.raises(StoreError, match=message):
        build.validate()


def test_shards_of_another_size_are_thrown_away(
    store: Store, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    """The size is a runtime knob, so it may change between two attempts at one key."""
    for size, expected in ((2, False), (2, True), (1, False)):
        with attempt(store, ref, payload) as build:
            build.use_shard_size(size)
            assert build.shard_done(0) is expected
            assert build.shard_done(1) is False
            build.write_table("scores", scores.head(size), shard=0)
            build.mark_shard(0, {"images": size})


def test_a_shard_without_files_cannot_be_marked(store: Store, ref: ArtifactRef, payload: dict[str, Any]) -> None:
    with (
        pytest.raises(StoreError, match=r"shard 3 of scores/.* has no file .*/\*-00003\.\*; write it first"),
        store.build(ref, payload) as build,
    ):
        build.mark_shard(3, {})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, r"has no files in .*; a stage must write something to be published"),
        (
            lambda folder: (folder / "scores.parquet").write_bytes(b"PAR1 torn"),
            r"scores\.parquet cannot be read as Parquet",
        ),
        (lambda folder: (folder / "manifest.json").write_text("{}"), r"manifest\.json cannot be published"),
        (lambda folder: (folder / "link").symlink_to("/etc/hostname"), r"link cannot be published: links"),
        (lambda folder: (folder / "votes.parquet").write_bytes(b""), r"votes\.parquet cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_published_says_so(
    store: Store, ref: ArtifactRef, payload: dict[str, Any], write: Any, message: str
) -> None:
    with pytest.raises(StoreError, match=message), store.build(ref, payload) as build:
        write(build.folder)
    assert not store.is_published(ref)
    assert store.list_artifacts() == []


def test_leftovers_of_a_killed_write_are_not_published(
    store: Store, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    with store.build(ref, payload) as build:
        build.write_table("scores", scores)
        (build.folder / "latents-00000.partial").write_bytes(b"half")
    assert sorted(path.name for path in store.localize(ref).iterdir()) == ["manifest.json", "scores.parquet"]


def test_a_killed_marker_is_not_counted(store: Store, half_built: ArtifactRef, payload: dict[str, Any]) -> None:
    """Killed after the marker's content was written and before it was renamed: the shard is done again."""
    marker = scratch(store, half_built) / "shards" / "00001.json"
    marker.with_name("00001.json.0123.partial").write_bytes(marker.read_bytes())
    with store.build(half_built, payload):
        pass
    assert store.manifest(half_built).counts == {"images": 4, "dropped": 1}


def test_a_table_must_be_written_before_it_is_read(store: Store, ref: ArtifactRef, payload: dict[str, Any]) -> None:
    with (
        pytest.raises(StoreError, match="has no table 'scores' yet; write it first"),
        store.build(ref, payload) as build,
    ):
        build.read_table("scores")


def test_two_roots_share_a_scratch_folder_without_mixing(
    tmp_path: Path, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    one, two = (Store(str(tmp_path / name), scratch=str(tmp_path / "scratch")) for name in ("one", "two"))
    with one.build(ref, payload) as first, two.build(ref, payload) as second:
        assert first.folder != second.folder
        first.write_table("scores", scores.assign(value=1.0))
        second.write_table("scores", scores.assign(value=2.0))
    assert one.read_table(ref, "scores")["value"].tolist() == [1.0, 1.0]
    assert two.read_table(ref, "scores")["value"].tolist() == [2.0, 2.0]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second file system, /dev/shm")
def test_scratch_may_lie_on_another_disk(
    tmp_path: Path, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        store = Store(str(tmp_path / "store"), scratch=folder)
        with store.build(ref, payload) as build:
            build.write_table("scores", scores)
            (build.folder / "model").mkdir()
            (build.folder / "model" / "weights.bin").write_bytes(b"weights")
        assert store.is_published(ref)
        assert store.verify() == []
        assert [path for path in Path(folder).rglob("*") if path.is_file()] == []


def test_a_table_is_written_part_by_part(
    store: Store, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    parts = [scores, scores.assign(value=9.0), scores[:0]]
    with store.build(ref, payload) as build:
        build.write_parts("scores", iter(parts))
        assert build.read_table("scores", columns=["value"])["value"].tolist() == [0.25, 0.5, 9.0, 9.0]
    pd.testing.assert_frame_equal(store.read_table(ref, "scores"), pd.concat(parts, ignore_index=True))
    assert [path.name for path in store.localize(ref).iterdir() if path.suffix == ".partial"] == []


def test_parts_that_end_in_an_error_leave_no_table(
    store: Store, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    def failing() -> Iterator[pd.DataFrame]:
        yield scores
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"), store.build(ref, payload) as build:
        build.write_parts("scores", failing())
    with store.build(ref, payload) as build:
        with pytest.raises(StoreError, match="has no table 'scores' yet"):
            build.read_table("scores")
        with pytest.raises(StoreError, match="missing columns"):
            build.write_parts("scores", iter([scores.drop(columns="value")]))
        build.write_table("scores", scores)
    assert store.read_table(ref, "scores")["value"].tolist() == [0.25, 0.5]
    assert sorted(path.name for path in store.localize(ref).iterdir()) == ["manifest.json", "scores.parquet"]
