"""What can be read of a run, and that nothing else can."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from read_only import read_only

from popalign_core.errors import StoreError
from storage.readable_runs import ReadableRuns, iter_blocks
from storage.roots import Root
from storage.store import Store


@pytest.fixture
def folder(store: Store) -> Path:
    """Of a run with a page, a table, weights, and what is hidden or under way."""
    run = Path(store.root) / "runs" / "first"
    (run / "model").mkdir(parents=True)
    for name in ("report.html", "metrics.csv", "weights.safetensors", ".secret.html", "report.html.0a.partial"):
        (run / name).write_text(name)
    (run / "model" / "README.md").write_text("card")
    return run


def read(runs: ReadableRuns, run: str | None, file: str) -> bytes | None:
    found = runs.open(run, file)
    if found is None:
        return None
    size, opened = found
    data = b"".join(iter_blocks(opened))
    assert (len(data), opened.closed) == (size, True)
    return data


def test_pages_and_tables_are_read_and_nothing_else(store: Store, folder: Path) -> None:
    runs = ReadableRuns(store.root)
    assert {run: list(files or ()) for run, files in runs.runs().items()} == {"first": ["metrics.csv", "report.html"]}
    assert [*runs.files("first")] == ["metrics.csv", "report.html"]
    assert read(runs, "first", "report.html") == b"report.html"
    assert [read(runs, "first", path.name) for path in folder.iterdir() if path.suffix not in (".html", ".csv")] == [
        *[None] * 3
    ]
    assert read(runs, "first", ".secret.html") is None
    assert read(runs, "first", "model/README.md") is None


def test_what_a_run_reserves_is_for_programs(store: Store, folder: Path) -> None:
    store.run_folder("first").reserve([])
    runs = ReadableRuns(store.root)
    assert "reserved.json" in runs.files("first")
    assert read(runs, "first", "reserved.json") is None


@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("..", "secret.html"),
        ("../..", "secret.html"),
        (".", "secret.html"),
        ("first", "../../secret.html"),
        ("first", "../../../secret.html"),
        ("first/..", "first/report.html"),
        ("", "secret.html"),
        ("first\0", "report.html"),
        ("first", "report.html\0.html"),
        ("first\\..", "report.html"),
        ("linked", "report.html"),
        ("first", "linked.html"),
        ("first", "pipe.html"),
        ("first", "folder.html"),
        ("first", f"{'x' * 300}.html"),
        ("x" * 300, "report.html"),
    ],
)
def test_no_name_leads_out_of_a_run(run: str, file: str, store: Store, folder: Path) -> None:
    for place in (folder.parents[2], folder.parents[1], folder.parents[0]):
        (place / "secret.html").write_text("secret")
    (folder.parent / "linked").symlink_to(folder, target_is_directory=True)
    (folder / "linked.html").symlink_to(folder.parents[2] / "secret.html")
    (folder / "folder.html").mkdir()
    os.mkfifo(folder / "pipe.html")
    runs = ReadableRuns(store.root)
    assert read(runs, run, file) is None
    assert [*runs.runs()] == ["first"]


def plain(run: Path, outside: Path) -> None:
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(outside / "report.html")


def whole(run: Path, outside: Path) -> None:
    run.rename(run.with_name("away"))
    run.symlink_to(outside, target_is_directory=True)


@pytest.mark.parametrize("swap", [plain, whole])
def test_a_link_put_in_place_after_the_look_is_not_followed(
    swap: Callable[[Path, Path], None], store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "report.html").write_text("secret")
    runs, look = ReadableRuns(store.root), Root.files

    def look_then_swap(root: Root, path: str) -> object:
        found = look(root, path)
        swap(folder, tmp_path / "outside")
        return found

    monkeypatch.setattr(Root, "files", look_then_swap)
    assert read(runs, "first", "report.html") is None


def test_a_replaced_page_is_read_to_its_old_end(store: Store, folder: Path) -> None:
    runs = ReadableRuns(store.root)
    found = runs.open("first", "report.html")
    assert found is not None
    store.run_folder("first").write_text("report.html", "a new one")
    assert b"".join(iter_blocks(found[1])) == b"report.html"
    assert read(runs, "first", "report.html") == b"a new one"


def test_nothing_is_written_and_a_medium_that_is_read_only_does(store: Store, folder: Path) -> None:
    def content() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in Path(store.root).rglob("*"))

    before = content()
    read(ReadableRuns(store.root), "first", "report.html")
    assert content() == before, "not even a probe that is gone again: it would change a folder's time"
    with read_only(Path(store.root)):
        assert read(ReadableRuns(store.root), "first", "report.html") == b"report.html"


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*/none; give the --root of one"):
        ReadableRuns(str(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_a_root_to_be_read_refuses_to_be_written(tmp_path: Path) -> None:
    root = Root(str(tmp_path), read_only=True)
    assert not root.is_writable
    with pytest.raises(StoreError, match="was opened to be read only"):
        root.check_writable()


def test_a_store_behind_a_link_of_its_owner_is_read(store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.root, target_is_directory=True)
    (Path(store.root) / "leaderboard.html").write_text("board")
    runs = ReadableRuns(str(tmp_path / "link"))
    assert (read(runs, "first", "report.html"), read(runs, None, "leaderboard.html")) == (b"report.html", b"board")


def test_a_text_that_is_none_is_refused(store: Store, folder: Path) -> None:
    (folder / "report.md").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match=r"runs/first/report\.md is not readable; delete it or run that run again"):
        ReadableRuns(store.root).read_text("first", "report.md")
