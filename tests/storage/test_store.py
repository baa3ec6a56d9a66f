"""Publish, hit, read; roots that cannot be used."""

import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import storage
from popalign_core.errors import StoreError
from storage.store import ArtifactRef, Store


def place(store: Store, ref: ArtifactRef) -> Path:
    return Path(store.root) / ref.stage / ref.key


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_public_names() -> None:
    assert sorted(storage.__all__) == [
        *("ArtifactRef", "Build", "FileRecord", "GarbageReport", "Manifest", "Problem", "RunFolder", "Store"),
    ]
    assert all(hasattr(storage, name) for name in storage.__all__)


def test_importing_the_store_is_light() -> None:
    heavy = ("pandas", "pyarrow", "torch", "prefect", "fsspec", "filelock", "numpy", "PIL")
    code = f"import sys, storage.store; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(storage.__file__).parents[1]
    )
    assert done.stdout.strip() == "[]"


def test_nothing_is_published_before_the_block_ends(
    store: Store, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    with store.build(ref, payload) as build:
        build.write_table("scores", scores)
        assert not build.already_published
        assert not store.is_published(ref)
        assert store.list_artifacts() == []
    assert store.is_published(ref)
    assert store.list_artifacts() == [ref]
    assert sorted(snapshot(place(store, ref))) == ["manifest.json", "scores.parquet"]
    assert list((Path(store.root) / ".scratch").rglob("*.parquet")) == []


def test_the_manifest_describes_the_artifact(store: Store, published: ArtifactRef, payload: dict[str, Any]) -> None:
    manifest = store.manifest(published)
    assert (manifest.stage, manifest.key, manifest.payload) == (published.stage, published.key, payload)
    assert (manifest.rows, manifest.schemas, manifest.counts) == ({"scores": 4}, {"scores": 2}, {"images": 4})
    assert sorted(manifest.files) == [
        *("model/weights.bin", "notes.txt", "scores-00000.parquet", "scores-00001.parquet"),
    ]
    assert manifest.files["notes.txt"].bytes == 5
    # printf notes | sha256sum
    assert manifest.files["notes.txt"].sha256 == "ab5aa97074c454a0632057e704220d9a6678fbf773a0a5806fc09b8173b07309"
    assert {"python", "pyarrow", "pandas"} <= set(manifest.libraries)


def test_a_table_comes_back_whole_or_shard_by_shard(store: Store, published: ArtifactRef) -> None:
    assert store.read_table(published, "scores")["value"].tolist() == [0.25, 0.5, 1.25, 1.5]
    assert [shard["value"].tolist() for shard in store.iter_table(published, "scores")] == [[0.25, 0.5], [1.25, 1.5]]
    assert store.rows_by_shard(published, "scores") == [2, 2]


def test_one_shard_is_read_alone_and_checked(store: Store, published: ArtifactRef) -> None:
    (store.localize(published) / "scores-00000.parquet").write_bytes(b"torn")
    assert store.read_table(published, "scores", ["value"], shard=1).to_dict("list") == {"value": [1.25, 1.5]}
    with pytest.raises(StoreError, match=r"scores-00000\.parquet does not match its checksum"):
        store.read_table(published, "scores", shard=0)
    with pytest.raises(StoreError, match=r"table 'scores' of scores/scores-v1-.* has no shard 2; it has 2 from 0 on"):
        store.read_table(published, "scores", shard=2)
    with pytest.raises(StoreError, match=r"scores-00000\.parquet cannot be read as Parquet"):
        store.rows_by_shard(published, "scores")


def test_some_columns_are_read_alone_and_the_rest_is_still_checked(store: Store, published: ArtifactRef) -> None:
    some = store.read_table(published, "scores", ["value", "image_id"])
    assert some.to_dict("list") == {"value": [0.25, 0.5, 1.25, 1.5], "image_id": ["a", "b", "a", "b"]}
    assert [list(shard.columns) for shard in store.iter_table(published, "scores", ["scorer"])] == [["scorer"]] * 2
    (store.localize(published) / "scores-00001.parquet").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"scores-00001\.parquet does not match its checksum"):
        store.read_table(published, "scores", ["value"])


def test_two_stores_hold_the_same_bytes(
    tmp_path: Path, payload: dict[str, Any], ref: ArtifactRef, scores: pd.DataFrame
) -> None:
    stores = [Store(str(tmp_path / "one")), Store(str(tmp_path / "two"), scratch=str(tmp_path / "scratch"))]
    for store in stores:
        with store.build(ref, payload) as build:
            build.write_table("scores", scores)
    first, second = (snapshot(place(store, ref)) for store in stores)
    assert first == second


def test_localize_gives_files_and_folders(store: Store, published: ArtifactRef) -> None:
    assert store.localize(published, "notes.txt").read_text(encoding="utf-8") == "notes"
    assert (store.localize(published, "model") / "weights.bin").read_bytes() == b"weights"
    assert (store.localize(published) / "model" / "weights.bin").is_file()
    with pytest.raises(StoreError, match=r"has no file or folder 'nope'; it has \['model/weights.bin', "):
        store.localize(published, "nope")


def test_what_is_not_there_says_how_to_make_it(store: Store, ref: ArtifactRef, published: ArtifactRef) -> None:
    absent = ArtifactRef("train", "train-v1-00000000000000000000000000000000")
    for read in (store.manifest, store.localize, lambda each: store.read_table(each, "scores")):
        with pytest.raises(StoreError, match=r"train/train-v1-0+ is not in .*; run `popalign stage train`"):
            read(absent)
    with pytest.raises(StoreError, match=r"has no table 'drops'; it has \['scores'\]"):
        store.read_table(published, "drops")


def test_a_published_artifact_is_never_overwritten(
    store: Store, published: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    before = snapshot(place(store, published))
    with store.build(published, payload) as build:
        assert build.already_published
        build.write_table("scores", scores.assign(value=99.0))
    assert snapshot(place(store, published)) == before


def test_a_forced_version_is_another_artifact(
    store: Store, published: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    store.bump(published.stage, published.key)
    forced = ArtifactRef("scores", store.key("scores", "1", {"scorer": "clip"}, {}))
    assert not store.is_published(forced)
    with store.build(forced, payload) as build:
        build.write_table("scores", scores)
    assert store.manifest(forced).payload == payload | {"revision": 1}
    assert store.list_artifacts() == sorted([published, forced])


def test_a_payload_of_another_key_is_refused(store: Store, ref: ArtifactRef, payload: dict[str, Any]) -> None:
    with (
        pytest.raises(StoreError, match=r"the payload given for scores/.* has the key scores-v2-"),
        store.build(ref, payload | {"version": "2"}),
    ):
        pass


def test_a_file_where_the_root_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(
        StoreError, match=r"cannot write .*/file/store/.*a file is where a folder should be; give another"
    ):
        Store(str(tmp_path / "file" / "store"))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_root_without_write_permission(open_folder: Path, tmp_path: Path, spawn: Any) -> None:
    """As nobody: root may write everywhere."""
    (open_folder / "locked").mkdir(mode=0o555)
    code = """
import os, sys
import storage
from storage.roots import Root
Root(sys.argv[2])  # imports what this user may not read any more in a moment
if os.getuid() == 0:
    os.setuid(65534)
try:
    storage.Store(sys.argv[1]).check_writable()
except storage.store.StoreError as error:
    print(error)
"""
    out, err = spawn(code, open_folder / "locked", tmp_path).communicate(timeout=30)
    assert err == ""
    assert f"cannot write {open_folder}/locked/.probe-" in out
    assert "PermissionError" in out
    assert "no permission; give another --root or let this user write there" in out


def test_an_unknown_kind_of_root() -> None:
    with pytest.raises(
        StoreError, match=r"cannot open the store root 'nope://x': ValueError: Protocol not known: nope"
    ):
        Store("nope://x")


def test_folders_of_the_user_are_no_artifacts(store: Store, published: ArtifactRef) -> None:
    (Path(store.root) / "photos" / "2024-v1-summer").mkdir(parents=True)
    (Path(store.root) / "leaderboard.parquet").write_bytes(b"x")
    assert store.list_artifacts() == [published]
    assert store.verify() == []


def test_a_second_process_says_whom_it_waits_for(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    ref = ArtifactRef("scores", store.key("scores", "1", {}, {}))
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def build() -> None:
        with Store(store.root).build(ref, {}) as made:
            begun.set()
            go_on.wait(30)
            (made.folder / "note.txt").write_text("x")
        done.set()

    threading.Thread(target=build, daemon=True).start()
    assert begun.wait(30)
    threading.Timer(0.2, go_on.set).start()
    with store.build(ref, {}) as second:
        assert second.already_published
    assert done.wait(30)
    assert f"waiting for process {os.getpid()} on {platform.node()}, which works on {ref}" in caplog.text
    assert list(Path(store.root).rglob("*.owner")) == []
