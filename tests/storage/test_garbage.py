import shutil
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
import pytest

from popalign_core.errors import StoreError
from storage.run_folder import RunFolder
from storage.store import ArtifactRef, Store


def make(store: Store, scores: pd.DataFrame, name: str, *, finish: bool = True) -> ArtifactRef:
    """An artifact, or the build of one that failed."""
    ref = ArtifactRef("scores", store.key("scores", "1", {"scorer": name}, {}))
    try:
        with store.build(ref, {}) as build:
            build.write_table("scores", scores, shard=0)
            build.mark_shard(0, {"images": 2})
            if not finish:
                raise KeyError(name)
    except KeyError:
        pass
    return ref


def build_folder(store: Store, ref: ArtifactRef) -> Path:
    return Path(store.root) / ".scratch" / "builds" / str(ref)


def files(store: Store) -> set[Path]:
    return {path for path in Path(store.root).rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_what_no_run_refers_to_goes(store: Store, scores: pd.DataFrame) -> None:
    kept, reserved, gone = (make(store, scores, name) for name in ("kept", "reserved", "gone"))
    store.run_folder("one").record([kept], {})
    store.reserve("two", [reserved])
    size = sum(path.stat().st_size for path in (Path(store.root) / str(gone)).iterdir())

    before = files(store)
    dry = store.collect_garbage(dry_run=True)
    assert (dry.artifacts, dry.scratch, dry.leftovers, dry.busy, dry.freed_bytes) == ([gone], [], [], [], size)
    assert files(store) == before

    report = store.collect_garbage(dry_run=False)
    assert (report.artifacts, report.freed_bytes, report.dry_run) == ([gone], size, False)
    assert store.list_artifacts() == sorted([kept, reserved])
    assert store.verify() == []
    again = store.collect_garbage(dry_run=False)
    assert (again.artifacts, again.scratch, again.leftovers, again.freed_bytes) == ([], [], [], 0)


def test_finished_shards_of_a_reserved_run_stay(store: Store, scores: pd.DataFrame) -> None:
    wanted, stale = (make(store, scores, name, finish=False) for name in ("wanted", "stale"))
    store.reserve("killed", [wanted])
    report = store.collect_garbage(dry_run=False)
    assert (report.artifacts, report.scratch) == ([], [str(build_folder(store, stale))])
    with store.build(wanted, {}) as build:
        assert build.shard_done(0)


def test_scratch_of_a_published_artifact_goes(store: Store, scores: pd.DataFrame) -> None:
    ref = make(store, scores, "kept")
    store.run_folder("one").record([ref], {})
    (build_folder(store, ref) / "files").mkdir(parents=True)
    assert store.collect_garbage(dry_run=False).scratch == [str(build_folder(store, ref))]
    assert store.is_published(ref)


def test_a_build_under_way_is_left_alone(store: Store, scores: pd.DataFrame) -> None:
    ref = ArtifactRef("scores", store.key("scores", "1", {"scorer": "busy"}, {}))
    with store.build(ref, {}) as build:
        build.write_table("scores", scores)
        report = store.collect_garbage(dry_run=False)
    assert (report.busy, report.scratch) == ([ref], [])
    assert store.is_published(ref)


def test_what_is_there_once_it_is_reserved_stays(
    store: Store, scores: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that reserves while a collection is under way has to wait, or it would take for a hit what goes."""
    make(store, scores, "other")
    ref, seen = make(store, scores, "wanted"), list[bool]()
    store.run_folder("any").record([], {})

    def command() -> None:
        store.reserve("late", [ref])
        seen.append(store.is_published(ref))

    thread, read = Thread(target=command), RunFolder.references

    def references(folder: RunFolder) -> set[ArtifactRef]:
        found = read(folder)
        if not thread.ident:
            thread.start()
            thread.join(0.3)  # long enough to reserve, where nothing keeps it from that
        return found

    monkeypatch.setattr(RunFolder, "references", references)
    store.collect_garbage(dry_run=False)
    thread.join()
    assert [store.is_published(ref)] == seen
    assert store.collect_garbage(dry_run=False).artifacts == []


def test_trash_that_another_process_deletes_meanwhile_is_no_fault(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(store.root) / ".trash" / "0123"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "x").write_bytes(b"x")
    remove = shutil.rmtree

    def rmtree(path: Path, *args: Any, **options: Any) -> None:
        if ".trash" in str(path):
            remove(path)  # the other process is faster
        remove(path, *args, **options)

    monkeypatch.setattr("storage.garbage.shutil.rmtree", rmtree)
    report = store.collect_garbage(dry_run=False)
    assert (report.leftovers, folder.exists()) == ([str(folder)], False)


def test_folders_without_a_manifest_and_trash_go(store: Store, scores: pd.DataFrame) -> None:
    ref, copied = make(store, scores, "torn"), make(store, scores, "copied")
    store.run_folder("one").record([ref, copied], {})
    (Path(store.root) / str(ref) / "manifest.json").unlink()
    for folder in (".trash/0123", f".incoming/{copied}"):
        (Path(store.root) / folder).mkdir(parents=True)
        (Path(store.root) / folder / "x").write_bytes(b"x")
    report = store.collect_garbage(dry_run=False)
    assert sorted(report.leftovers) == sorted(
        str(Path(store.root) / name) for name in (".trash/0123", f".incoming/{copied}", str(ref))
    )
    assert store.list_artifacts() == [copied]
    assert not (Path(store.root) / str(ref)).exists()


def test_nothing_of_the_user_is_touched(store: Store) -> None:
    photo = Path(store.root) / "photos" / "2024-v1-summer" / "cat.png"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"cat")
    report = store.collect_garbage(dry_run=False)
    assert (report.artifacts, report.leftovers, report.freed_bytes) == ([], [], 0)
    assert photo.read_bytes() == b"cat"


@pytest.mark.parametrize("content", ["{", "[]", '{"artifacts": 3}', '{"artifacts": [["a"]]}', "{}"])
def test_an_unreadable_run_stops_the_collection(store: Store, scores: pd.DataFrame, content: Any) -> None:
    ref = make(store, scores, "kept")
    (Path(store.root) / "runs" / "one").mkdir(parents=True)
    (Path(store.root) / "runs" / "one" / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(StoreError, match=r"runs/one/run\.json is not readable; delete the folder .*/runs/one or run"):
        store.collect_garbage(dry_run=False)
    assert store.list_artifacts() == [ref]
