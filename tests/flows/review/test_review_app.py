"""The review app's pages, and each attack on them: every test here fails without its defence."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from itsdangerous import URLSafeSerializer
from starlette.testclient import TestClient
from study_worlds import SMALL, make_study, prefer

from flows.review.app import make_app
from flows.review.guard import Allowance
from flows.review.server_settings import ReviewSettings
from flows.review.sessions import invitation
from popalign_core.errors import ConfigError
from storage.reviews.review_tables import Rater, Study
from storage.reviews.votes import ReviewDatabase
from tasks.studies.study_records import completion_code, invite

BASE = "http://127.0.0.1:8765"
TOKEN = "correct-horse-battery-staple"

Open = Callable[..., TestClient]


class World:
    """A study with two raters, and the app that serves it."""

    def __init__(self, folder: Path, database: ReviewDatabase, study: Study, raters: list[Rater]) -> None:
        self.url = f"sqlite:///{folder / 'reviews.sqlite'}"
        self.database, self.study, self.raters = database, study, raters

    def link(self, rater: int = 0) -> str:
        return invitation(self.study, self.raters[rater].rater_id, BASE)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, *make_study(tmp_path, n_raters=2))


@pytest.fixture
def browse(world: World) -> Iterator[Open]:
    """Opens the app in a browser of its own: cookies are not shared, redirects are followed."""
    with ExitStack() as stack:

        def open_browser(**settings: object) -> TestClient:
            app = make_app(world.url, ReviewSettings(**settings))  # type: ignore[arg-type]
            base = str(settings.get("url") or BASE)
            return stack.enter_context(TestClient(app, base_url=base, raise_server_exceptions=False))

        yield open_browser


def token_of(html: str, action: str = "judge") -> str:
    found = re.search(rf'action="[^"]*/{action}"[^>]*>\s*<input type="hidden" name="token" value="([^"]+)"', html)
    assert found is not None, html
    return found[1]


def test_a_rater_goes_from_link_to_completion_code(world: World, browse: Open) -> None:
    rater = browse()
    page = rater.get(world.link())
    assert str(page.url) == f"{BASE}/s/study", "the token is not in the address any more"
    assert "what the pictures look like" in page.text
    page = rater.get("/s/study/judge")
    for number in range(10):
        assert f"{number + 1} of 10" in page.text
        page = rater.post("/s/study/judge", data={"token": token_of(page.text), "choice": "tie"})
    assert str(page.url) == f"{BASE}/s/study/done"
    assert completion_code(world.study, world.raters[0].rater_id) in page.text
    assert [vote.choice for vote, _, _ in world.database.votes("study")] == ["tie"] * 10


def test_the_code_is_shown_to_nobody_before_the_end(world: World, browse: Open) -> None:
    rater = browse()
    rater.get(world.link())
    page = rater.get("/s/study/done")
    assert str(page.url) == f"{BASE}/s/study/judge"
    assert completion_code(world.study, world.raters[0].rater_id) not in page.text


def test_a_restart_and_a_second_device_go_on_where_the_rater_was(world: World, browse: Open) -> None:
    first = browse()
    first.get(world.link())
    page = first.get("/s/study/judge")
    first.post("/s/study/judge", data={"token": token_of(page.text), "choice": "first"})
    restarted = browse()
    restarted.cookies = first.cookies
    assert "2 of 10" in restarted.get("/s/study/judge").text
    elsewhere = browse()
    elsewhere.get(world.link())
    assert "2 of 10" in elsewhere.get("/s/study/judge").text


def test_undo_brings_the_last_question_back_once(world: World, browse: Open) -> None:
    rater = browse()
    rater.get(world.link())
    pages = [rater.get("/s/study/judge")]
    for choice in ("first", "second"):
        pages.append(rater.post("/s/study/judge", data={"token": token_of(pages[-1].text), "choice": choice}))
    undo = {"token": token_of(pages[-1].text, "undo")}
    assert "2 of 10" in rater.post("/s/study/undo", data=undo).text
    assert "2 of 10" in rater.post("/s/study/undo", data=undo).text, "sent twice, undone once"
    assert [vote.choice for vote, _, _ in world.database.votes("study")] == ["first"]


def test_the_time_of_an_answer_is_from_when_the_page_was_made(
    world: World, browse: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.review import rater_pages, sessions

    rater = browse()
    rater.get(world.link())
    monkeypatch.setattr(sessions.time, "time", lambda: 1000.0)
    page = rater.get("/s/study/judge")
    monkeypatch.setattr(rater_pages.time, "time", lambda: 1004.5)
    rater.post("/s/study/judge", data={"token": token_of(page.text), "choice": "tie"})
    assert [vote.seconds for vote, _, _ in world.database.votes("study")] == [4.5]


def test_the_page_is_blind(world: World, browse: Open) -> None:
    rater = browse()
    rater.get(world.link())
    for _ in range(10):
        turn = world.database.turn(world.raters[0].rater_id)
        assert turn is not None
        text = rater.get("/s/study/judge").text
        for secret in ("base", "aligned", turn.pair.pair_id, *turn.pair.images_a, *turn.pair.images_b):
            assert secret not in text
        assert "check" not in text.lower()
        places = [text.index(side[0], text.index("<main>")) for side in (turn.pair.pictures_a, turn.pair.pictures_b)]
        if not turn.pair.checks:
            assert ("a" if places[0] < places[1] else "b") == turn.asked.first
        world.database.vote(world.raters[0].rater_id, turn.asked.asked_id, "tie", 1.0)


def test_every_picture_has_a_text_and_the_next_ones_are_named_ahead(world: World, browse: Open) -> None:
    rater = browse()
    rater.get(world.link())
    text = rater.get("/s/study/judge").text
    alts = re.findall(r'<img src="[^"]+" alt="([^"]+)"', text)
    assert len(alts) == 4
    assert alts[1] == f"Set 1, picture 2 of 2, made for: {_turn(world).pair.prompt}"
    ahead = re.search(r'data-ahead="([^"]*)"', text)
    assert ahead is not None
    for address in ahead[1].split():
        response = rater.get(address)
        assert (response.status_code, response.headers["content-type"]) == (200, "image/webp")
        assert "immutable" in response.headers["cache-control"]


def _turn(world: World, rater: int = 0):  # type: ignore[no-untyped-def]
    turn = world.database.turn(world.raters[rater].rater_id)
    assert turn is not None
    return turn


def test_without_a_valid_link_nothing_is_shown(world: World, browse: Open) -> None:
    stranger = browse()
    picture = _turn(world).pair.pictures_a[0]
    forged = URLSafeSerializer("guess", salt="invitation").dumps(world.raters[0].rater_id)
    for path in (
        "/s/study",
        "/s/study/judge",
        "/s/study/done",
        f"/s/study/pictures/{picture}",
        f"/s/study/join/{forged}",
    ):
        response = stranger.get(path)
        assert response.status_code == 401, path
        assert world.study.instructions.splitlines()[0] not in response.text
    assert stranger.get("/s/other/judge").status_code == 404


def test_a_token_is_good_for_its_purpose_and_its_study_only(world: World, browse: Open, tmp_path: Path) -> None:
    rater = browse()
    link_token = world.link().rpartition("/")[2]
    rater.cookies.set("rater", link_token, path="/s/study")
    assert rater.get("/s/study/judge").status_code == 401, "an invitation is no session"
    database, other, others = make_study(tmp_path / "o", name="other", url=world.url, n_raters=1)
    foreign = invitation(other, others[0].rater_id, BASE).replace("/s/other/", "/s/study/")
    assert browse().get(foreign).status_code == 401
    mine = browse()
    mine.get(world.link())
    theirs = database.turn(others[0].rater_id)
    assert theirs is not None
    assert mine.get(f"/s/study/pictures/{theirs.pair.pictures_a[0]}").status_code == 404


def test_a_closed_rater_is_shut_out(world: World, browse: Open) -> None:
    rater = browse()
    rater.get(world.link())
    page = rater.get("/s/study/judge")
    world.database.close_rater("study", 1)
    assert rater.get("/s/study/judge").status_code == 403
    assert rater.post("/s/study/judge", data={"token": token_of(page.text), "choice": "tie"}).status_code == 403
    assert world.database.count_votes("study") == 0


def test_a_form_from_elsewhere_is_refused(world: World, browse: Open) -> None:
    """CSRF: the cookie alone, which a foreign page could have sent, is not enough."""
    rater = browse()
    rater.get(world.link())
    page = rater.get("/s/study/judge")
    for forged in ("", "x", world.link().rpartition("/")[2], token_of(page.text) + "x"):
        assert rater.post("/s/study/judge", data={"token": forged, "choice": "tie"}).status_code == 403
        assert rater.post("/s/study/undo", data={"token": forged}).status_code == 403
    assert rater.post("/s/study/undo", data={"token": token_of(page.text)}).status_code == 403, "of another form"
    assert world.database.count_votes("study") == 0
    cookie = browse().get(world.link(), follow_redirects=False).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie


def test_nobody_votes_with_another_raters_form(world: World, browse: Open) -> None:
    one, two = browse(), browse()
    one.get(world.link(0))
    two.get(world.link(1))
    page = two.get("/s/study/judge")
    assert one.post("/s/study/judge", data={"token": token_of(page.text), "choice": "tie"}).status_code == 403
    assert world.database.count_votes("study") == 0


def test_nobody_votes_twice(world: World, browse: Open) -> None:
    rater = browse()
    rater.get(world.link())
    form = {"token": token_of(rater.get("/s/study/judge").text), "choice": "first"}
    assert rater.post("/s/study/judge", data=form).status_code == 200
    assert rater.post("/s/study/judge", data=form).status_code == 200, "a lost answer is sent again"
    changed = rater.post("/s/study/judge", data=form | {"choice": "second"})
    assert changed.status_code == 409
    assert "Your first answer stands" in changed.text
    assert [vote.choice for vote, _, _ in world.database.votes("study")] == ["first"]


def test_no_rater_sees_anothers_answers(world: World, browse: Open) -> None:
    for _ in range(10):
        turn = _turn(world, 1)
        world.database.vote(world.raters[1].rater_id, turn.asked.asked_id, "first", 1.0)
    alone = browse()
    alone.get(world.link())
    assert "1 of 10" in alone.get("/s/study/judge").text
    assert "disabled" in alone.get("/s/study/judge").text, "there is nothing of one's own to undo"
    # what does show answers is the operator's
    public = browse(host="0.0.0.0", token=TOKEN, url="https://study.example")
    public.get(world.link().replace(BASE, "https://study.example"))
    for path in ("/", "/studies/study", "/studies/study/votes.csv"):
        assert public.get(path).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/static/../settings.py",
        "/static/%2e%2e/settings.py",
        "/static/..%2fsettings.py",
        "/static//etc/passwd",
        "/s/study/pictures/..%2f..%2freviews.sqlite",
        "/s/study/pictures/%2e%2e%2f%2e%2e%2freviews.sqlite",
        "/s/..%2f..%2f/judge",
    ],
)
def test_no_path_leads_out(world: World, browse: Open, path: str) -> None:
    rater = browse()
    rater.get(world.link())
    response = rater.get(path)
    assert response.status_code == 404
    assert "SQLite" not in response.text
    assert "ReviewSettings" not in response.text


def test_other_machines_need_a_token() -> None:
    with pytest.raises(ConfigError, match="is open to other machines; give a token"):
        ReviewSettings(host="0.0.0.0")
    with pytest.raises(ConfigError, match="is open to other machines"):
        ReviewSettings(url="https://study.example")  # a proxy on this machine
    with pytest.raises(ConfigError, match="the token has 5 characters; give at least 16"):
        ReviewSettings(token="short")
    assert ReviewSettings(host="::1").base_url == "http://[::1]:8765"


def test_the_operator_logs_in_with_the_token(browse: Open) -> None:
    operator = browse(token=TOKEN)
    assert operator.get("/").status_code == 401
    assert operator.post("/login", data={"operator_token": "wrong" * 5}).status_code == 401
    operator.cookies.set("operator", "forged")
    assert operator.get("/studies/study").status_code == 401
    operator.cookies.clear()
    page = operator.post("/login", data={"operator_token": TOKEN})
    assert (page.status_code, "study" in page.text) == (200, True)
    again = browse(token=TOKEN)  # after a restart
    again.cookies = operator.cookies
    assert again.get("/studies/study").status_code == 200
    changed = browse(token=TOKEN[::-1])
    changed.cookies = operator.cookies
    assert changed.get("/studies/study").status_code == 401


def test_guessing_ends_soon(browse: Open) -> None:
    attacker = browse(token=TOKEN)
    codes = [attacker.post("/login", data={"operator_token": f"guess {n}"}).status_code for n in range(40)]
    assert codes[:30] == [401] * 30
    assert set(codes[31:]) == {429}
    assert attacker.post("/login", data={"operator_token": TOKEN}).status_code == 429


def test_one_rater_cannot_take_the_server(world: World, browse: Open) -> None:
    greedy = browse(rate=0.001, burst=20)
    greedy.get(world.link())
    codes = [greedy.get("/s/study").status_code for _ in range(30)]
    assert codes[:15] == [200] * 15
    assert set(codes[20:]) == {429}


def test_an_allowance_fills_with_time_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.review import guard

    now = [0.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    allowance = Allowance(per_second=2, burst=3, max_keys=2)
    assert [allowance.take("a") for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [allowance.take("a"), allowance.take("a")] == [True, False]
    assert [allowance.take("b"), allowance.take("c")] == [True, True]
    assert allowance.take("a"), "it was forgotten, so that memory stays bounded"


def test_large_requests_are_refused(world: World, browse: Open) -> None:
    rater = browse()
    rater.get(world.link())
    page = rater.get("/s/study/judge")
    form = {"token": token_of(page.text), "choice": "tie"}
    assert rater.post("/s/study/judge", data=form | {"more": "x" * 70_000}).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield from (b"x" * 1000 for _ in range(100))

    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert rater.post("/s/study/judge", content=chunks(), headers=kind).status_code == 413, "without a length too"
    assert rater.post("/s/study/judge", json=form).status_code == 415
    assert world.database.count_votes("study") == 0


def test_a_foreign_name_for_this_machine_is_refused(browse: Open) -> None:
    """DNS rebinding: a page of evil.example, which now resolves to 127.0.0.1, would be let in as this machine's."""
    local = browse()
    for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "a b"):
        assert local.get("/", headers={"host": host}).status_code == 400, host
    for host in ("127.0.0.1:8765", "localhost", "[::1]:8765"):
        assert local.get("/", headers={"host": host}).status_code == 200, host


def test_pages_load_nothing_from_elsewhere_and_run_no_inline_script(world: World, browse: Open) -> None:
    client = browse()
    client.get(world.link())
    for path in ("/s/study", "/s/study/judge", "/", "/studies/study", "/login", "/nowhere"):
        page = client.get(path)
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "img-src", "form-action")} == {"'self'"}
        assert policy["frame-ancestors"] == "'none'"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["cache-control"] == "no-store"
        addresses = re.findall(r'(?:src|href|action)="([^"]*)"', page.text)
        assert [address for address in addresses if not address.startswith("/")] == []
        assert re.findall(r"<script(?![^>]*src=)|style=|\son\w+=", page.text) == []


def test_instructions_and_prompts_cannot_carry_script(world: World, browse: Open) -> None:
    operator = browse()
    with closing(sqlite3.connect(world.url.removeprefix("sqlite:///"))) as raw, raw:
        raw.execute("UPDATE pairs SET prompt = '<script>prompt</script>\" onload=x'")
        raw.execute("UPDATE studies SET system_a = '<script>system</script>'")
    page = operator.get("/studies/study")
    assert "<script>system" not in page.text
    evil = "<script>alert(1)</script> [x](javascript:alert(1)) ![p](https://evil.example/p.png) **bold**"
    form = {"token": token_of(page.text, "instructions"), "text": evil}
    assert operator.post("/studies/study/instructions", data=form).status_code == 200
    operator.get(world.link())
    page = operator.get("/s/study")
    assert "<script>alert" not in page.text
    question = operator.get("/s/study/judge").text
    assert "&lt;script&gt;prompt" in question
    assert "<script>prompt" not in question
    assert '" onload' not in question
    assert 'href="javascript' not in page.text
    assert "<strong>bold</strong>" in page.text


def test_the_operators_forms_are_signed(world: World, browse: Open) -> None:
    operator = browse()
    page = operator.get("/studies/study")
    for name, form in (("invite", {"n": "1"}), ("instructions", {"text": "# Mine"})):
        assert operator.post(f"/studies/study/{name}", data=form).status_code == 403
        wrong = token_of(page.text, "instructions" if name == "invite" else "invite")
        assert operator.post(f"/studies/study/{name}", data=form | {"token": wrong}).status_code == 403
    assert len(world.database.raters("study")) == 2
    assert world.database.study("study").instructions != "# Mine"


def test_the_operator_invites_sees_progress_and_takes_the_votes_home(world: World, browse: Open) -> None:
    operator = browse()
    page = operator.get("/studies/study")
    assert (
        operator.post("/studies/study/invite", data={"token": token_of(page.text, "invite"), "n": "9"}).status_code
        == 400
    )
    page = operator.get("/studies/study")
    assert len(re.findall(rf"<code>{BASE}/s/study/join/", page.text)) == 3, "as many as were needed were made"
    assert (
        operator.post("/studies/study/invite", data={"token": token_of(page.text, "invite"), "n": "-1"}).status_code
        == 400
    )
    assert prefer(world.database, world.raters[0], "a") == 10
    page = operator.get("/studies/study")
    assert re.findall(r"<b>(\S+)</b> <small>", page.text) == ["1.000"] * 4
    assert ">done<" in page.text
    csv = operator.get("/studies/study/votes.csv")
    assert csv.headers["content-type"].startswith("text/csv")
    assert len(csv.text.splitlines()) == 11
    assert "10 of 30" in operator.get("/").text


def test_errors_of_the_database_do_not_reach_raters(
    world: World, browse: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from popalign_core.errors import StoreError

    rater = browse()
    rater.get(world.link())

    def fail(*_: object) -> None:
        raise StoreError("secret path /home/x")

    monkeypatch.setattr(ReviewDatabase, "turn", fail)
    response = rater.get("/s/study/judge")
    assert (response.status_code, "secret" in response.text) == (503, False)


def test_plans_of_raters_invited_later_are_served_too(world: World, browse: Open) -> None:
    third = invite(world.database, world.study)
    rater = browse()
    rater.get(invitation(world.study, third.rater_id, BASE))
    assert f"1 of {4 * len(SMALL.questions) + SMALL.n_checks}" in rater.get("/s/study/judge").text
