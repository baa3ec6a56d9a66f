"""The pages of curating: steps, ends and undo by form, and what they refuse; every test fails without its defence."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from curation_worlds import make_curation
from starlette.testclient import TestClient

from flows.review.app import make_app
from flows.review.server_settings import ReviewSettings
from flows.review.sessions import invitation
from storage.reviews.chain_steps import read_all_steps, read_steps
from storage.reviews.review_tables import DONE, GIVEN_UP, Rater
from storage.reviews.votes import ReviewDatabase
from tasks.studies.study_records import invite

BASE = "http://127.0.0.1:8765"
Open = Callable[..., TestClient]


@pytest.fixture
def database(tmp_path: Path) -> ReviewDatabase:
    return make_curation(tmp_path, set_size=4, n_raters=2)


@pytest.fixture
def browse(tmp_path: Path, database: ReviewDatabase) -> Iterator[Open]:
    """A browser of its own for a new curator, at the set."""
    with ExitStack() as stack:

        def open_browser(rater: Rater | None = None) -> TestClient:
            app = make_app(f"sqlite:///{tmp_path / 'reviews.sqlite'}", ReviewSettings())
            browser = stack.enter_context(TestClient(app, base_url=BASE, raise_server_exceptions=False))
            study = database.study("sets")
            rater = rater or invite(database, study)
            browser.get(invitation(study, rater.rater_id, BASE))
            browser.rater = rater  # type: ignore[attr-defined]
            return browser

        yield open_browser


def token_of(html: str, action: str) -> str:
    found = re.search(rf'action="[^"]*/{action}"[^>]*>\s*<input type="hidden" name="token" value="([^"]+)"', html)
    assert found is not None, html
    return found[1]


def members(html: str) -> list[str]:
    return re.findall(r'<img src="[^"]+/([0-9a-f]+)" alt="Picture \d+ of \d+ of the set', html)


def coming(html: str) -> str:
    (found,) = re.findall(r'<img src="[^"]+/([0-9a-f]+)" alt="The new picture', html)
    return str(found)


def marked(html: str) -> int:
    (found,) = re.findall(r'alt="Picture (\d+) of \d+ of the set, marked', html)
    return int(found) - 1


def answer(browser: TestClient, html: str, choice: str, action: str = "curate") -> str:
    page = browser.post(f"/s/sets/{action}", data={"token": token_of(html, action), "choice": choice})
    assert page.status_code == 200, page.text
    return str(page.text)


def test_a_curator_goes_through_the_chain(browse: Open, database: ReviewDatabase) -> None:
    one = browse()
    page = one.get("/s/sets/judge")
    assert str(page.url) == f"{BASE}/s/sets/curate"
    first = page.text
    assert "Set 1 of 2, step 1" in first
    kept = answer(one, first, "keep")
    assert members(kept) == members(first)
    assert "Set 1 of 2, step 2" in kept
    slot, new = marked(kept), coming(kept)
    taken = answer(one, kept, "take")
    assert members(taken) == [new if place == slot else old for place, old in enumerate(members(kept))]
    back = answer(one, taken, "", "curate/undo")
    assert (members(back), marked(back), coming(back)) == (members(kept), slot, new), "the same step is asked again"
    second = answer(one, answer(one, back, "take"), "done", "curate/end")
    assert "Set 2 of 2, step 1" in second
    reopened = answer(one, second, "", "undo")
    assert "Set 1 of 2, step 3" in reopened, "undone at the start of a set, the one before is open again"
    last = answer(one, reopened, "done", "curate/end")
    ended = one.post("/s/sets/curate/end", data={"token": token_of(last, "curate/end"), "choice": "give up"})
    assert str(ended.url) == f"{BASE}/s/sets/done"
    assert [vote.choice for vote, _, _ in database.votes("sets")] == [DONE, GIVEN_UP]
    assert [step.is_accepted for steps in read_all_steps(database, "sets").values() for step in steps] == [False, True]


def test_a_restart_and_a_reload_go_on_where_the_set_was(browse: Open) -> None:
    one = browse()
    page = answer(one, answer(one, one.get("/s/sets/curate").text, "take"), "keep")
    again = browse(one.rater)  # type: ignore[attr-defined]
    for _ in range(2):
        html = again.get("/s/sets/curate").text
        assert (members(html), marked(html), coming(html)) == (members(page), marked(page), coming(page))
        assert "Set 1 of 2, step 3" in html


def test_a_step_sent_twice_is_one_and_another_answer_to_it_is_refused(browse: Open, database: ReviewDatabase) -> None:
    one = browse()
    html = one.get("/s/sets/curate").text
    form = {"token": token_of(html, "curate"), "choice": "take"}
    late = {"token": token_of(html, "curate/end"), "choice": "done"}
    assert [one.post("/s/sets/curate", data=form).status_code for _ in range(3)] == [200] * 3
    changed = one.post("/s/sets/curate", data=form | {"choice": "keep"})
    assert changed.status_code == 409
    assert "in another window perhaps" in changed.text
    assert one.post("/s/sets/curate/end", data=late).status_code == 409, "content with a set that is another by now"
    (steps,) = read_all_steps(database, "sets").values()
    assert [(step.number, step.is_accepted) for step in steps] == [(0, True)]


def test_the_balance_counts_and_hides_on_demand(browse: Open, tmp_path: Path) -> None:
    one = browse()
    shown = one.get("/s/sets/curate").text
    counts = [int(n) for n in re.findall(r'<td class="number">(\d+) <small>wanted 2<', shown)]
    assert sum(counts) == 4
    hidden = one.get("/s/sets/curate?balance=hidden").text
    assert "wanted" not in hidden
    form = {"token": token_of(hidden, "curate"), "choice": "keep", "balance": "hidden"}
    assert "wanted" not in one.post("/s/sets/curate", data=form).text, "it stays hidden"
    assert one.get("/s/sets/curate?balance=x").status_code == 422
    quiet = make_curation(tmp_path / "quiet", set_size=4, balance="hidden")
    app = make_app(f"sqlite:///{tmp_path / 'quiet' / 'reviews.sqlite'}", ReviewSettings())
    with TestClient(app, base_url=BASE) as other:
        other.get(invitation(quiet.study("sets"), invite(quiet, quiet.study("sets")).rater_id, BASE))
        assert "wanted" not in other.get("/s/sets/curate").text
        assert "wanted" in other.get("/s/sets/curate?balance=shown").text


def test_forms_of_others_and_of_elsewhere_are_refused(browse: Open, database: ReviewDatabase) -> None:
    one, two = browse(), browse()
    theirs, mine = two.get("/s/sets/curate").text, one.get("/s/sets/curate").text
    forged = ["", "x", token_of(theirs, "curate"), token_of(mine, "curate/end"), token_of(mine, "curate") + "x"]
    for token in forged:
        assert one.post("/s/sets/curate", data={"token": token, "choice": "take"}).status_code == 403
    for token in ("", token_of(theirs, "curate/end"), token_of(mine, "curate")):
        assert one.post("/s/sets/curate/end", data={"token": token, "choice": "done"}).status_code == 403
        assert one.post("/s/sets/curate/undo", data={"token": token}).status_code == 403
    assert one.post("/s/sets/curate", data={"token": token_of(mine, "curate"), "choice": "both"}).status_code == 400
    # nor does an answer of another kind of study end a chain
    assert one.post("/s/sets/judge", data={"token": token_of(mine, "curate"), "choice": "first"}).status_code == 403
    assert (read_all_steps(database, "sets"), database.count_votes("sets")) == ({}, 0)
    one.cookies.clear()
    assert one.get("/s/sets/curate").status_code == 401


def test_the_page_names_no_image_and_no_class_that_is_hidden(browse: Open, database: ReviewDatabase) -> None:
    one = browse()
    turn = database.turn(one.rater.rater_id)  # type: ignore[attr-defined]
    assert turn is not None
    html = one.get("/s/sets/curate?balance=hidden").text
    for secret in (turn.pair.pair_id, *turn.pair.images_a, *turn.pair.images_b, "female", "specific"):
        assert secret not in html
    ahead = re.search(r'data-ahead="([^"]*)"', html)
    assert ahead is not None
    assert [one.get(address).status_code for address in ahead[1].split()] == [200, 200]


def test_candidates_run_out(tmp_path: Path) -> None:
    database = make_curation(tmp_path, set_size=4, max_steps=2)
    rater = invite(database, database.study("sets"))
    with TestClient(make_app(f"sqlite:///{tmp_path / 'reviews.sqlite'}", ReviewSettings()), base_url=BASE) as one:
        one.get(invitation(database.study("sets"), rater.rater_id, BASE))
        html = answer(one, answer(one, one.get("/s/sets/curate").text, "take"), "take")
        assert "There are no more pictures. Keep this set?" in html
        assert 'value="take"' not in html
        answer(one, html, "done", "curate/end")
    assert [len(read_steps(database, asked.asked_id)) for _, asked, _ in database.votes("sets")] == [2]


def test_a_study_of_another_kind_has_no_such_page(tmp_path: Path) -> None:
    from study_worlds import make_study

    database, study, (rater,) = make_study(tmp_path, n_raters=1)
    with TestClient(make_app(f"sqlite:///{tmp_path / 'reviews.sqlite'}", ReviewSettings()), base_url=BASE) as one:
        one.get(invitation(study, rater.rater_id, BASE))
        assert one.get("/s/study/curate").status_code == 404
    assert database.count_votes("study") == 0


def test_the_operator_sees_how_the_sets_came_about(browse: Open, tmp_path: Path) -> None:
    one = browse()
    answer(one, answer(one, one.get("/s/sets/curate").text, "take"), "done", "curate/end")
    assert "sets of 4" in one.get("/").text
    page = one.get("/studies/sets").text
    assert "1 set(s) begun: 1 finished." in page
    table = one.get("/studies/sets/votes.csv")
    assert table.headers["content-disposition"] == 'attachment; filename="curated.csv"'
    assert len(table.text.splitlines()) == 1 + 4
