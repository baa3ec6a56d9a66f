"""The review database."""

import os
import shutil
import sqlite3
import stat
import subprocess
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from curation_worlds import make_curation
from study_worlds import SMALL, answer_all, make_study

from popalign_core.errors import InputError, StoreError
from storage.reviews.chain_steps import add_step, end_chain, read_steps
from storage.reviews.review_tables import DONE, ChainStep
from storage.reviews.votes import ReviewDatabase
from tasks.studies.study_records import invite


def test_a_plan_is_answered_in_order_and_remembered(tmp_path: Path) -> None:
    database, _, (rater,) = make_study(tmp_path, n_raters=1)
    turn = database.turn(rater.rater_id)
    assert turn is not None
    assert (turn.n_done, turn.n_all) == (0, 4 * 2 + 2)
    assert len(turn.ahead) == 2 * SMALL.set_size
    assert database.vote(rater.rater_id, turn.asked.asked_id, "first", 1.5)
    database.close()
    again = ReviewDatabase(f"sqlite:///{tmp_path / 'reviews.sqlite'}")
    after = again.turn(rater.rater_id)
    assert after is not None
    assert (after.n_done, after.asked.position) == (1, 1)
    assert answer_all(again, rater, ["tie"]) == 9
    assert again.turn(rater.rater_id) is None
    assert [(done, n) for _, done, n in again.raters("study")] == [(10, 10)]


def test_a_question_takes_one_answer_and_repeating_it_changes_nothing(tmp_path: Path) -> None:
    database, _, (rater,) = make_study(tmp_path, n_raters=1)
    turn = database.turn(rater.rater_id)
    assert turn is not None
    asked_id = turn.asked.asked_id
    assert database.vote(rater.rater_id, asked_id, "first", 1.0)
    assert database.vote(rater.rater_id, asked_id, "first", 9.0), "the same answer again is the same answer"
    assert not database.vote(rater.rater_id, asked_id, "second", 1.0)
    assert [(vote.choice, vote.seconds) for vote, _, _ in database.votes("study")] == [("first", 1.0)]


def test_the_database_itself_refuses_a_second_vote_and_an_unknown_answer(tmp_path: Path) -> None:
    database, _, (rater,) = make_study(tmp_path, n_raters=1)
    turn = database.turn(rater.rater_id)
    assert turn is not None
    rows = "INSERT INTO votes (asked_id, choice, seconds) VALUES (?, ?, 1.0)"
    with closing(sqlite3.connect(tmp_path / "reviews.sqlite")) as raw:
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            raw.execute(rows, (turn.asked.asked_id, "both"))
        raw.execute(rows, (turn.asked.asked_id, "tie"))
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            raw.execute(rows, (turn.asked.asked_id, "first"))


def test_forty_answers_at_once_to_one_question_are_one_vote(tmp_path: Path) -> None:
    database, _, (rater,) = make_study(tmp_path, n_raters=1)
    turn = database.turn(rater.rater_id)
    assert turn is not None
    stored: list[bool] = []

    def vote(choice: str) -> None:
        stored.append(database.vote(rater.rater_id, turn.asked.asked_id, choice, 1.0))

    threads = [threading.Thread(target=vote, args=("first" if n % 2 else "second",)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored) == 40
    assert sum(stored) == 20, "those who gave the answer that is held"
    assert database.count_votes("study") == 1


def test_nobody_answers_for_another(tmp_path: Path) -> None:
    database, _, (one, two) = make_study(tmp_path, n_raters=2)
    turn = database.turn(one.rater_id)
    assert turn is not None
    with pytest.raises(InputError, match="not one of this rater's"):
        database.vote(two.rater_id, turn.asked.asked_id, "first", 1.0)


def test_undo_takes_back_the_last_answer_and_no_other(tmp_path: Path) -> None:
    database, _, (rater,) = make_study(tmp_path, n_raters=1)
    ids = []
    for choice in ("first", "tie"):
        turn = database.turn(rater.rater_id)
        assert turn is not None
        ids.append(turn.asked.asked_id)
        database.vote(rater.rater_id, turn.asked.asked_id, choice, 1.0)
    assert not database.undo(rater.rater_id, ids[0])
    assert database.undo(rater.rater_id, ids[1])
    assert not database.undo(rater.rater_id, ids[1]), "twice sent, once done"
    assert [vote.choice for vote, _, _ in database.votes("study")] == ["first"]
    last = database.last_vote(rater.rater_id)
    assert last is not None
    assert last.asked_id == ids[0]


def test_invitations_end_when_every_pair_has_its_raters_and_go_on_when_one_is_closed(tmp_path: Path) -> None:
    database, study, raters = make_study(tmp_path, n_raters=3)
    assert [rater.number for rater in raters] == [1, 2, 3]
    with pytest.raises(InputError, match="every pair has its 3 raters"):
        invite(database, study)
    turn = database.turn(raters[1].rater_id)
    assert turn is not None
    pair_id = turn.pair.pair_id
    database.vote(raters[1].rater_id, turn.asked.asked_id, "tie", 1.0)  # a part of the first pair
    database.close_rater("study", 2)
    assert database.coverage("study")[pair_id] == 3
    fourth = invite(database, study)
    assert fourth.number == 4, "a refused invitation takes no number"
    answer_all(database, fourth, ["tie"])
    answered = [pair for _, asked, pair in database.votes("study") if asked.rater_id == fourth.rater_id]
    plan = {pair.pair_id for pair in answered if not pair.checks}
    assert (len(plan), pair_id in plan) == (3, False)
    with pytest.raises(InputError, match="has no rater 9"):
        database.close_rater("study", 9)


def test_invitations_at_once_do_not_overfill(tmp_path: Path) -> None:
    database, study, _ = make_study(tmp_path)
    refused: list[str] = []

    def ask() -> None:
        try:
            invite(database, study)
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert [rater.number for rater, _, _ in database.raters("study")] == [1, 2, 3]
    real = [n for pair_id, n in database.coverage("study").items()]
    assert set(real) == {3}


def test_instructions_stay_once_there_are_votes(tmp_path: Path) -> None:
    database, _, (rater,) = make_study(tmp_path, n_raters=1)
    database.set_instructions("study", "# New")
    assert database.study("study").instructions == "# New"
    answer_all(database, rater, ["tie"])
    with pytest.raises(InputError, match="has votes under its instructions"):
        database.set_instructions("study", "# Newer")
    assert database.study("study").instructions == "# New"


def test_a_name_is_taken_once_and_the_first_study_stays_whole(tmp_path: Path) -> None:
    database, _, _ = make_study(tmp_path)
    with pytest.raises(InputError, match="there is a study 'study' already"):
        make_study(tmp_path / "other", url=f"sqlite:///{tmp_path / 'reviews.sqlite'}")
    with pytest.raises(InputError, match="there is no study 'none'; there are: study"):
        database.study("none")
    assert len(database.studies()) == 1


def test_pictures_belong_to_their_study(tmp_path: Path) -> None:
    database, _, (rater,) = make_study(tmp_path, n_raters=1)
    turn = database.turn(rater.rater_id)
    assert turn is not None
    data = database.picture("study", turn.pair.pictures_a[0])
    assert data is not None
    assert data[8:12] == b"WEBP"
    assert database.picture("another", turn.pair.pictures_a[0]) is None
    assert database.picture("study", "../../etc/passwd") is None


def test_only_the_owner_reads_the_file(tmp_path: Path) -> None:
    make_study(tmp_path)
    assert stat.S_IMODE((tmp_path / "reviews.sqlite").stat().st_mode) == 0o600


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////proc/none/x.sqlite", "oracle://x"])
def test_a_database_that_cannot_be_opened_says_what_to_give(url: str) -> None:
    with pytest.raises(StoreError, match=r"cannot be opened .* give a URL such as sqlite:///reviews.sqlite"):
        ReviewDatabase(url)


@pytest.mark.parametrize(
    "url",
    ["postgresql://me:s3cret%20word@nowhere.invalid/x", "oracle://me:s3cret%20word@x/y", "what:://me:s3cret%20word@"],
)
def test_the_password_of_a_database_is_in_no_message(url: str) -> None:
    with pytest.raises(StoreError, match=r"cannot be opened") as caught:
        ReviewDatabase(url)
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown
    assert "***" in shown


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """A PostgreSQL server of the test's own, on a socket in its folder."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if not shutil.which("initdb") else [Path("")]
    if not programs or (os.getuid() == 0 and shutil.which("runuser") is None):
        pytest.skip("there is no PostgreSQL on this machine")
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    home = Path(f"/tmp/popalign-pg-{os.getpid()}")
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    control = [*as_user, str(programs[-1] / "pg_ctl"), "-D", str(home / "data"), "-w"]
    try:
        made = subprocess.run(
            [*control, "initdb", "-o", "-A trust -U postgres"], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            pytest.skip(f"initdb does not run here: {made.stderr[-200:]}")
        options = f"-k {home} -c listen_addresses=''"
        subprocess.run([*control, "-o", options, "-l", str(home / "log"), "start"], check=True, capture_output=True)
        yield f"postgresql://postgres@/postgres?host={home}"
    finally:
        subprocess.run([*control, "stop", "-m", "immediate"], capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
def test_postgresql_keeps_a_study_as_sqlite_does(postgres: str, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    database, study, raters = make_study(tmp_path, n_raters=3, url=postgres)
    with pytest.raises(InputError, match="every pair has its 3 raters"):
        invite(database, study)
    for rater in raters:
        assert answer_all(database, rater, ["first", "tie", "second"]) == 10
    last = database.last_vote(raters[0].rater_id)
    assert last is not None
    assert not database.vote(raters[0].rater_id, last.asked_id, "second", 1.0)
    assert database.undo(raters[0].rater_id, last.asked_id)
    assert database.count_votes("study") == 29
    assert [(n, n_all) for _, n, n_all in database.raters("study")] == [(9, 10), (10, 10), (10, 10)]
    database.close_rater("study", 1)
    with pytest.raises(InputError, match="there is a study"):
        make_study(tmp_path / "other", url=postgres)
    sets = make_curation(tmp_path / "sets", url=postgres)
    assert steps_at_once(sets) == 1
    database.close()
    sets.close()


def steps_at_once(database: ReviewDatabase) -> int:
    """Twenty times both answers to the first step and the end of the chain, all at once; the steps there are then."""
    rater = invite(database, database.study("sets"))
    turn = database.turn(rater.rater_id)
    assert turn is not None
    asked_id, kept = turn.asked.asked_id, list[bool]()

    def take(is_accepted: bool) -> None:
        step = ChainStep(asked_id=asked_id, number=0, slot=0, replacement=0, is_accepted=is_accepted, seconds=1.0)
        kept.append(add_step(database, rater.rater_id, step))

    threads = [threading.Thread(target=take, args=(n % 2 == 0,)) for n in range(40)]
    threads.append(
        threading.Thread(target=end_chain, args=(database, rater.rater_id, asked_id, 1, DONE, 1.0)),
    )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(kept), sum(kept)) == (40, 20), "those who gave the answer that is held"
    return len(read_steps(database, asked_id))


def test_forty_answers_at_once_to_one_step_are_one_step(tmp_path: Path) -> None:
    assert steps_at_once(make_curation(tmp_path)) == 1
