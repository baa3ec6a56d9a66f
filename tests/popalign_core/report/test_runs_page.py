"""The list of runs as a page."""

from datetime import UTC, datetime

from pages import Page, text_of

from popalign_core.report.runs_page import ListedRun, State, build_runs_page


def run(name: str, state: State = "complete", day: int | None = 1, files: tuple[str, ...] = ()) -> ListedRun:
    when = None if day is None else datetime(2026, 1, day, 9, 5, tzinfo=UTC)
    return ListedRun(name, "run", state, when, "✔ Fairer on gender", files)


def test_the_newest_run_of_each_state_comes_first() -> None:
    found = [run("b", day=2), run("a", day=3), run("c", day=None), run("d", "damaged"), run("e", "incomplete")]
    page = build_runs_page([*found, run("f", "kept"), run("g", "again", 4)], "s3://bucket", [])
    assert "4 complete runs in s3://bucket." in text_of(page)
    order = ["<h2>Complete", *"gabc", "<h2>Not complete", "e", "<h2>Damaged", "d", "<h2>No runs", "f"]
    places = [page.index(f'<th scope="row">{part}</th>' if len(part) == 1 else part) for part in order]
    assert places == sorted(places)
    assert "2026-01-03 09:05" in page
    assert ">not known<" in page


def test_pages_come_before_tables_and_each_table_once() -> None:
    files = ("card.md", "metrics.csv", "metrics.json", "metrics.parquet", "report.html", "run.json")
    page = build_runs_page([run("mine", files=files)], "here", ["leaderboard.html"])
    assert "report.html card.md metrics (csv json parquet), run (json)" in " ".join(text_of(page).split())
    assert '<a href="/runs/mine/metrics.parquet">parquet</a>' in page
    assert '<a href="/leaderboard.html">leaderboard.html</a>' in page


def test_names_from_outside_are_text() -> None:
    evil = '"><script>alert(1)</script>'
    page = build_runs_page([run(evil, files=(f"{evil}.html",))], evil, [])
    assert "script" not in Page(page).tags
    assert "%22%3E%3Cscript%3E" in page


def test_an_empty_store_says_how_to_fill_it() -> None:
    text = text_of(build_runs_page([], "here", []))
    assert "0 complete runs in here." in text
    assert "There are no runs yet; popalign run makes one." in text
