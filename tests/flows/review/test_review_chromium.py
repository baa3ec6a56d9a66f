"""Curating and labelling in a real Chromium: by keyboard alone, on a desktop's and a phone's screen."""

import re
from pathlib import Path
from typing import Any

import pytest
from chromium_pages import DESKTOP, NEEDS_CHROMIUM, PHONE, check_screen, open_page
from curation_worlds import make_curation, make_labelling
from review_server import ReviewServer

from flows.review.sessions import invitation
from storage.reviews.chain_steps import read_all_steps
from storage.reviews.review_tables import ANSWER_PREFIX, DONE
from storage.reviews.votes import ReviewDatabase
from tasks.studies.curation import curated_table
from tasks.studies.study_records import invite

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
SCREENS = [("desktop", DESKTOP), ("phone", PHONE)]


def link(database: ReviewDatabase, name: str, server: ReviewServer) -> str:
    study = database.study(name)
    return invitation(study, invite(database, study).rater_id, server.url)


def at(page: Any, title: str) -> None:
    from playwright.sync_api import expect

    expect(page).to_have_title(title)
    page.wait_for_load_state("load")


def test_a_curator_makes_two_sets_by_keyboard_alone(browser: Any, tmp_path: Path) -> None:
    """Reloads in the middle, and takes a step and a finished set back; the steps in the database are exactly theirs."""
    database = make_curation(tmp_path, set_size=6)
    with ReviewServer(f"sqlite:///{tmp_path / 'reviews.sqlite'}") as server:
        page, wrong = open_page(browser, link(database, "sets", server), **DESKTOP)
        page.keyboard.press("Enter")
        for number, key in enumerate("2122u1d", 1):
            at(page, f"Set 1 of 2, step {number if number < 6 else number - 2}")
            if number == 3:
                page.reload()
                at(page, "Set 1 of 2, step 3")
            page.keyboard.press(key)
        at(page, "Set 2 of 2, step 1")
        page.keyboard.press("h")
        page.wait_for_url("**/curate?balance=hidden")
        assert page.locator(".balance table").count() == 0
        page.keyboard.press("u")
        at(page, "Set 1 of 2, step 5")
        page.keyboard.press("d")
        at(page, "Set 2 of 2, step 1")
        page.keyboard.down("2")
        for _ in range(4):
            page.keyboard.down("2")  # held: one step
        at(page, "Set 2 of 2, step 2")
        page.wait_for_timeout(300)
        page.keyboard.up("2")
        page.keyboard.press("d")
        at(page, "Done")
        assert wrong == []
    one, two = [[step.is_accepted for step in steps] for _, steps in sorted(read_all_steps(database, "sets").items())]
    assert (one, two) == ([True, False, True, False], [True])
    assert [vote.choice for vote, _, _ in database.votes("sets")] == [DONE, DONE]
    assert curated_table(database, "sets").groupby("set_id").size().tolist() == [6, 6]


def test_killing_the_server_loses_no_step(browser: Any, tmp_path: Path) -> None:
    database = make_curation(tmp_path, set_size=6)
    with ReviewServer(f"sqlite:///{tmp_path / 'reviews.sqlite'}") as server:
        page, _ = open_page(browser, link(database, "sets", server), **DESKTOP)
        page.keyboard.press("Enter")
        for number in range(1, 5):
            at(page, f"Set 1 of 2, step {number}")
            pictures = page.locator(".set img").evaluate_all("all => all.map(i => i.src)")
            server.kill()
            server.start()
            page.reload()
            assert page.locator(".set img").evaluate_all("all => all.map(i => i.src)") == pictures
            page.keyboard.press("2")
        at(page, "Set 1 of 2, step 5")
    assert [len(steps) for steps in read_all_steps(database, "sets").values()] == [4]


@pytest.mark.parametrize(("name", "options"), SCREENS)
def test_the_curators_page_fits_the_screen(browser: Any, tmp_path: Path, name: str, options: Any) -> None:
    database = make_curation(tmp_path, set_size=10)
    with ReviewServer(f"sqlite:///{tmp_path / 'reviews.sqlite'}") as server:
        page, wrong = open_page(browser, link(database, "sets", server), **options)
        page.screenshot(path=tmp_path / f"welcome-{name}.png", full_page=True)
        page.get_by_role("link", name=re.compile("Start: 2 sets")).click()
        page.wait_for_load_state("load")
        page.screenshot(path=tmp_path / f"curate-{name}.png")
        check_screen(page, options)
        # what is compared is in sight without scrolling
        for picture in page.locator(".swap img").all():
            box = picture.bounding_box()
            assert box["y"] + box["height"] <= page.locator("footer").bounding_box()["y"]
            assert box["width"] >= 120
        page.get_by_role("button", name=re.compile("Take the new one")).click()
        at(page, "Set 1 of 2, step 2")
        assert wrong == []


@pytest.mark.parametrize(("name", "options"), SCREENS)
@pytest.mark.parametrize("n_free", [1, 7])
def test_a_rater_labels_by_keyboard_and_the_page_fits(
    browser: Any, tmp_path: Path, name: str, options: Any, n_free: int
) -> None:
    free = ("non-binary", "two people", "child", "robot", "statue", "nobody", "somebody else")[:n_free]
    database, _ = make_labelling(tmp_path, free=free)
    with ReviewServer(f"sqlite:///{tmp_path / 'reviews.sqlite'}") as server:
        page, wrong = open_page(browser, link(database, "labels", server), **options)
        page.keyboard.press("Enter")
        at(page, "Question 1 of 6")
        page.screenshot(path=tmp_path / f"label-{name}-{n_free}.png")
        check_screen(page, options)
        for number, key in enumerate("1230u21", 1):
            at(page, f"Question {number if number < 6 else number - 2} of 6")
            page.keyboard.press(key)
        at(page, "Question 6 of 6")
        page.get_by_role("button", name=re.compile("Cannot tell")).click()
        at(page, "Done")
        assert wrong == []
    said = [vote.choice.removeprefix(ANSWER_PREFIX) for vote, _, _ in database.votes("labels")]
    assert said == ["male", "female", "non-binary", "female", "male", "cannot tell"]


@pytest.mark.parametrize("kind", ["curate", "label"])
def test_both_work_without_scripts(browser: Any, tmp_path: Path, kind: str) -> None:
    database = make_curation(tmp_path) if kind == "curate" else make_labelling(tmp_path)[0]
    buttons = {
        "curate": ("Take the new one", "Keep what is there", "Undo", "Done"),
        "label": ("female", "Undo", "female"),
    }
    with ReviewServer(f"sqlite:///{tmp_path / 'reviews.sqlite'}") as server:
        name = "sets" if kind == "curate" else "labels"
        page, wrong = open_page(browser, link(database, name, server), java_script_enabled=False, **DESKTOP)
        page.get_by_role("link", name=re.compile("Start")).click()
        for button in buttons[kind]:
            page.get_by_role("button", name=re.compile(button)).click()
        assert wrong == []
    assert [vote.choice for vote, _, _ in database.votes(name)] == [
        DONE if kind == "curate" else f"{ANSWER_PREFIX}female"
    ]
    assert [len(steps) for steps in read_all_steps(database, name).values()] == ([1] if kind == "curate" else [])
