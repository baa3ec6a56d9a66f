"""The list of runs: what each folder is, how far it is, and that none hides another."""

import os
import time
from pathlib import Path

import pytest
from run_folders import CARD, artifact, put_run

from popalign_core.config import RuntimeConfig
from popalign_core.errors import StoreError
from popalign_core.report.runs_page import ListedRun, build_runs_page
from storage.readable_runs import ReadableRuns
from storage.roots import Root
from storage.store import Store
from tasks.common.reservations import reserve_made
from tasks.publishing.published_runs import PublishedRuns

N_RUNS, MOST_SECONDS = 500, 5.0
RUN = ("prompts", "train", "evaluate:base", "report")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def listed(store: Store) -> dict[str, ListedRun]:
    return {run.name: run for run in PublishedRuns(ReadableRuns(store.root)).list_runs()}


def test_a_run_is_listed_with_its_verdict_and_its_files(store: Store) -> None:
    put_run(store, "mine", RUN)
    (run,) = listed(store).values()
    when = (Path(store.root) / "runs" / "mine" / "run.json").stat().st_mtime
    assert (run.kind, run.state, run.headline) == ("run", "complete", "✔ Fairer on gender")
    assert run.published is not None
    assert run.published.timestamp() == pytest.approx(when, abs=1e-3)
    assert run.files == ("report.html", "report.md", "run.json")


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        (RUN, "run"),
        (("train:sft", "scores:base", "comparison"), "comparison"),
        (("comparison", "sweep"), "sweep"),
        (("pairs", "train"), "training"),
        (("prompts",), ""),
    ],
)
def test_the_kind_is_that_of_the_nodes_also_before_the_end(nodes: tuple[str, ...], kind: str, store: Store) -> None:
    put_run(store, "done", nodes)
    put_run(store, "begun", nodes, {}, is_done=False)
    assert {name: (run.kind, run.state) for name, run in listed(store).items()} == {
        "done": (kind, "complete"),
        "begun": (kind, "incomplete"),
    }


def test_a_comparison_has_its_verdict_in_its_card(store: Store) -> None:
    put_run(
        store, "systems", ("comparison",), {"report.html": "<p>", "card.md": CARD.replace("gender", "a\\|b &lt;c&gt;")}
    )
    assert listed(store)["systems"].headline == "✔ Fairer on a|b <c>"


@pytest.mark.parametrize("card", ["", "no verdict", "**bold**", "**✔ two\nlines**"])
def test_a_card_without_a_verdict_has_no_headline(card: str, store: Store) -> None:
    put_run(store, "mine", RUN, {"report.md": card})
    assert (listed(store)["mine"].state, listed(store)["mine"].headline) == ("complete", "")


def test_a_run_that_is_begun_again_says_so_until_it_is_done(store: Store) -> None:
    put_run(store, "mine", RUN)
    reserved = Path(store.root) / "runs" / "mine" / "reserved.json"
    os.utime(reserved, (time.time() + 10, time.time() + 10))
    assert listed(store)["mine"].state == "again"


@pytest.mark.parametrize(
    "record", [b"", b"{", b"\xff", b"[1]", b'{"artifacts": 3}', b'{"artifacts": [], "meta": 3}', b"[" * 100_000]
)
def test_a_damaged_record_hides_no_other_run(record: bytes, store: Store) -> None:
    put_run(store, "whole", RUN)
    put_run(store, "torn", RUN)
    (Path(store.root) / "runs" / "torn" / "run.json").write_bytes(record)
    found = listed(store)
    assert (found["whole"].state, found["torn"].state) == ("complete", "damaged")
    assert "report.html" in found["torn"].files


def test_a_folder_that_cannot_be_looked_into_hides_no_other_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "theirs"):
        put_run(store, name, RUN)
    look = Root.files

    def refuse(root: Root, path: str) -> object:
        if path == "runs/theirs":
            raise StoreError("no permission")
        return look(root, path)

    monkeypatch.setattr(Root, "files", refuse)
    assert {name: run.state for name, run in listed(store).items()} == {"mine": "complete", "theirs": "damaged"}


def test_a_card_that_is_no_text_damages_no_run(store: Store) -> None:
    put_run(store, "mine", RUN)
    (Path(store.root) / "runs" / "mine" / "report.md").write_bytes(b"\xff")
    assert (listed(store)["mine"].state, listed(store)["mine"].headline) == ("complete", "report.md cannot be read")


def test_what_commands_keep_is_no_run(store: Store) -> None:
    runtime = RuntimeConfig(root=store.root)
    for command in ("stage-evaluate:base", "evaluate", "import-images", "study-mine"):
        reserve_made([artifact("train"), artifact("report")], runtime, command)
    assert sorted((run.kind, run.state) for run in listed(store).values()) == [
        *(("evaluation", "kept"), ("import", "kept"), ("stage", "kept"), ("study", "kept")),
    ]


def test_folders_that_others_made_are_listed_under_their_names(store: Store) -> None:
    names = ["a b", "percent%2e", "quo\"te'<b>", "日本", "new\nline", "what?#x"]
    for name in names:
        (Path(store.root) / "runs" / name).mkdir(parents=True)
    os.mkdir(os.fsencode(store.root) + b"/runs/no-\xff-utf8")
    found = listed(store)
    assert set(found) == {*names, "no-\udcff-utf8"}
    assert {run.state for run in found.values()} == {"incomplete"}
    page = build_runs_page(found.values(), "here", [])
    page.encode()
    assert "no-\\udcff-utf8" in page
    assert "<b>" not in page.partition("<h2>")[2]


def test_a_changed_run_is_read_again_and_another_is_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        put_run(store, name, RUN)
    readable, looks = ReadableRuns(store.root), list[str]()
    runs = PublishedRuns(readable)
    runs.list_runs()
    read = readable.read_text

    def count(run: str, file: str) -> str | None:
        looks.append(f"{run}/{file}")
        return read(run, file)

    monkeypatch.setattr(readable, "read_text", count)
    put_run(store, "two", RUN, {"report.md": CARD.replace("gender", "race")})
    assert [run.headline for run in runs.list_runs()] == ["✔ Fairer on gender", "✔ Fairer on race"]
    assert sorted(looks) == ["two/report.md", "two/run.json"]


def test_many_runs_are_listed_in_no_time(store: Store) -> None:
    for n in range(N_RUNS):
        put_run(store, f"run-{n:03}", RUN)
    runs, start = PublishedRuns(ReadableRuns(store.root)), time.monotonic()
    page = build_runs_page(runs.list_runs(), "here", [])
    assert time.monotonic() - start < MOST_SECONDS
    assert page.count("✔ Fairer on gender") == N_RUNS
