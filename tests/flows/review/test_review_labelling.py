"""The pages of labelling."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from curation_worlds import make_labelling
from starlette.testclient import TestClient

from flows.review.app import make_app
from flows.review.server_settings import ReviewSettings
from flows.review.sessions import invitation
from storage.reviews.review_tables import Rater
from storage.reviews.votes import ReviewDatabase
from tasks.studies.study_records import completion_code, invite

BASE = "http://127.0.0.1:8765"


class World:
    """A study of 6 images, and a rater's browser."""

    def __init__(self, database: ReviewDatabase, rater: Rater, browser: TestClient) -> None:
        self.database, self.rater, self.browser = database, rater, browser

    def choices(self) -> list[str]:
        return [vote.choice for vote, _, _ in self.database.votes("labels")]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    database, _ = make_labelling(tmp_path)
    study = database.study("labels")
    rater = invite(database, study)
    with TestClient(make_app(f"sqlite:///{tmp_path / 'reviews.sqlite'}", ReviewSettings()), base_url=BASE) as browser:
        browser.get(invitation(study, rater.rater_id, BASE))
        yield World(database, rater, browser)


def token_of(html: str, action: str = "judge") -> str:
    found = re.search(rf'action="[^"]*/{action}"[^>]*>\s*<input type="hidden" name="token" value="([^"]+)"', html)
    assert found is not None, html
    return found[1]


def test_a_rater_labels_every_picture_and_undoes_one(world: World) -> None:
    html = world.browser.get("/s/labels/judge").text
    answers = re.findall(r'value="(=[^"]+)" data-key="(\w)"', html)
    assert answers == [("=male", "1"), ("=female", "2"), ("=non-binary", "3"), ("=cannot tell", "0")]
    for number in range(6):
        assert f"{number + 1} of 6" in html
        page = world.browser.post("/s/labels/judge", data={"token": token_of(html), "choice": answers[number % 4][0]})
        html = page.text
    code = completion_code(world.database.study("labels"), world.rater.rater_id)
    assert code in html
    assert world.choices() == ["=male", "=female", "=non-binary", "=cannot tell", "=male", "=female"]
    html = world.browser.post("/s/labels/undo", data={"token": token_of(html, "undo")}).text
    assert "6 of 6" in html
    assert len(world.choices()) == 5


def test_the_page_does_not_say_what_there_is_to_see(world: World) -> None:
    turn = world.database.turn(world.rater.rater_id)
    assert turn is not None
    html = world.browser.get("/s/labels/judge").text
    for secret in ("doctor", "nurse", "photo of", turn.pair.images_a[0], turn.pair.prompt_id):
        assert secret not in html


@pytest.mark.parametrize("choice", ["first", "=", "=person", "", "male"])
def test_what_is_no_class_of_the_question_is_refused(world: World, choice: str) -> None:
    token = token_of(world.browser.get("/s/labels/judge").text)
    assert world.browser.post("/s/labels/judge", data={"token": token, "choice": choice}).status_code == 400
    assert world.choices() == []


def test_nobody_labels_twice_or_for_another(world: World) -> None:
    form = {"token": token_of(world.browser.get("/s/labels/judge").text), "choice": "=male"}
    other = invite(world.database, world.database.study("labels"))
    assert [world.browser.post("/s/labels/judge", data=form).status_code for _ in range(2)] == [200, 200]
    assert world.browser.post("/s/labels/judge", data=form | {"choice": "=female"}).status_code == 409
    assert world.choices() == ["=male"]
    world.browser.cookies.clear()
    assert world.browser.post("/s/labels/judge", data=form).status_code == 401
    world.browser.get(invitation(world.database.study("labels"), other.rater_id, BASE))
    assert world.browser.post("/s/labels/judge", data=form).status_code == 403


def test_the_operator_sees_counts(world: World) -> None:
    token = token_of(world.browser.get("/s/labels/judge").text)
    world.browser.post("/s/labels/judge", data={"token": token, "choice": "=female"})
    assert "labels: gender" in world.browser.get("/").text
    assert "1 labels of 1 people" in world.browser.get("/studies/labels").text
    assert "female" in world.browser.get("/studies/labels/votes.csv").text
