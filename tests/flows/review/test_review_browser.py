"""The review app in a real Chromium: by keyboard alone, by touch, and without scripts."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium_pages import DESKTOP, NEEDS_CHROMIUM, PHONE, check_screen, open_page
from review_server import ReviewServer
from study_worlds import make_study

from flows.review.sessions import invitation
from popalign_core.config.review import IMAGES, SETS, StudyConfig
from storage.reviews.review_tables import Rater, Study
from storage.reviews.votes import ReviewDatabase

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
CHOICE = {"1": "first", "2": "second", "3": "tie"}


class World:
    """A study, its server, and a way in for each rater."""

    def __init__(self, folder: Path, config: StudyConfig, n_prompts: int, n_raters: int) -> None:
        self.database, self.study, self.raters = make_study(folder, config, n_prompts=n_prompts, n_raters=n_raters)
        self.server = ReviewServer(f"sqlite:///{folder / 'reviews.sqlite'}")

    def link(self, rater: Rater) -> str:
        return invitation(self.study, rater.rater_id, self.server.url)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, SETS, n_prompts=20, n_raters=3)
    with made.server:
        yield made


def at_question(page: Any, number: int, n_all: int) -> None:
    from playwright.sync_api import expect

    expect(page).to_have_title(f"Question {number} of {n_all}")
    page.wait_for_load_state("load")


def votes_of(database: ReviewDatabase, study: Study, rater: Rater) -> list[str]:
    rows = database.votes(study.name)
    return [vote.choice for vote, asked, _ in rows if asked.rater_id == rater.rater_id]


def test_three_raters_finish_twenty_pairs_by_keyboard_alone(browser: Any, world: World) -> None:
    """One reloads in the middle, one takes an answer back; they take turns, and the votes are exactly theirs."""
    n_all = 20 * 2 + 6
    pages = [open_page(browser, world.link(rater), **DESKTOP) for rater in world.raters]
    for page, _ in pages:
        page.keyboard.press("Enter")
    meant: list[list[str]] = [[], [], []]
    for number in range(1, n_all + 1):
        for rater, (page, _) in enumerate(pages):
            at_question(page, number, n_all)
            if (rater, number) == (1, 23):
                page.reload()
                at_question(page, number, n_all)
            if (rater, number) == (2, 31):
                page.keyboard.press("u")
                at_question(page, number - 1, n_all)
                corrected = "3" if meant[rater].pop() != "tie" else "1"
                meant[rater].append(CHOICE[corrected])
                page.keyboard.press(corrected)
                at_question(page, number, n_all)
            key = "123"[(number * (rater + 1) + rater) % 3]
            meant[rater].append(CHOICE[key])
            page.keyboard.press(key)
    from playwright.sync_api import expect

    for rater, (page, wrong) in enumerate(pages):
        expect(page).to_have_title("Done")
        assert re.fullmatch("[0-9A-F]{10}", page.locator("output").inner_text())
        assert wrong == []
        assert votes_of(world.database, world.study, world.raters[rater]) == meant[rater]
    assert world.database.count_votes("study") == 3 * n_all
    assert set(world.database.coverage("study").values()) == {3}


def test_a_key_that_is_held_or_hit_twice_is_one_answer(browser: Any, world: World) -> None:
    page, _ = open_page(browser, world.link(world.raters[0]), **DESKTOP)
    page.keyboard.press("Enter")
    at_question(page, 1, 46)
    page.keyboard.down("1")
    for _ in range(5):
        page.keyboard.down("1")  # repeats while held
    at_question(page, 2, 46)
    page.keyboard.down("1")
    page.wait_for_timeout(500)
    page.keyboard.up("1")
    page.evaluate("() => { for (const key of '22') document.querySelector(`[data-key=\"${key}\"]`).click() }")
    at_question(page, 3, 46)
    assert votes_of(world.database, world.study, world.raters[0]) == ["first", "second"]


def test_the_pictures_of_the_next_pair_are_there_before_it_is_asked_for(browser: Any, world: World) -> None:
    page, _ = open_page(browser, world.link(world.raters[0]), **DESKTOP)
    page.keyboard.press("Enter")
    fetched = []
    for number in range(1, 8):
        at_question(page, number, 46)
        page.wait_for_load_state("networkidle")
        fetched.append(sum(size > 0 for size in page.evaluate(TRANSFERRED)))
        page.keyboard.press("3")
    assert fetched[0] > 0, "the first pair comes over the wire"
    assert fetched[1:] == [0] * 6, "all others out of the browser's cache"


@pytest.mark.parametrize(("name", "options"), [("desktop", DESKTOP), ("phone", PHONE)])
@pytest.mark.parametrize("config", [SETS, IMAGES], ids=["sets", "images"])
def test_the_page_fits_the_screen(browser: Any, tmp_path: Path, name: str, options: Any, config: StudyConfig) -> None:
    """Nothing is wider than the screen, the answers are in reach of a thumb, text stands out from its ground."""
    world = World(tmp_path, config, n_prompts=4, n_raters=1)
    with world.server:
        page, wrong = open_page(browser, world.link(world.raters[0]), **options)
        page.screenshot(path=tmp_path / f"welcome-{name}.png", full_page=True)
        page.get_by_role("link", name=re.compile("Start")).click()
        page.wait_for_load_state("load")
        page.screenshot(path=tmp_path / f"judge-{name}.png")
        assert page.get_by_role("button").count() == page.locator("footer button").count()
        check_screen(page, options)
        (page.get_by_role("button", name=re.compile("No difference")).tap if name == "phone" else
         page.get_by_role("button", name=re.compile("No difference")).click)()  # fmt: skip
        page.wait_for_load_state("load")
        page.locator("[data-zoom]").first.click()
        box = page.locator("#zoom img").bounding_box()
        assert min(box["width"], box["height"]) >= 0.6 * min(options["viewport"].values())
        page.keyboard.press("Escape")
        assert wrong == []
    assert votes_of(world.database, world.study, world.raters[0]) == ["tie"]


TRANSFERRED = """() => [...document.images].filter(i => i.alt)
  .map(i => performance.getEntriesByName(i.src)[0].transferSize)"""


def test_everything_works_without_scripts(browser: Any, world: World) -> None:
    page, wrong = open_page(browser, world.link(world.raters[0]), java_script_enabled=False, **DESKTOP)
    page.get_by_role("link", name=re.compile("Start")).click()
    for name in ("Set 1", "Set 2", "Undo", "No difference"):
        page.get_by_role("button", name=re.compile(name)).click()
    assert votes_of(world.database, world.study, world.raters[0]) == ["first", "tie"]
    assert wrong == []
