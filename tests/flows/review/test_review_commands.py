"""`popalign study` and `popalign review` from the command line."""

import socket
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from curation_worlds import let_judge, make_run
from study_worlds import RUN, make_store, prefer
from typer.testing import CliRunner

import flows.review.app
from flows.cli.app import app
from flows.review.study_arguments import links_command
from storage.reviews.votes import ReviewDatabase


@pytest.fixture
def root(tmp_path: Path) -> str:
    return make_store(tmp_path / "store", n_prompts=6).root


def study(root: str, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["study", *words, "--root", root])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


CREATE = ("create", "mine", "base", "aligned", "--run", RUN, "--set", "set_size=2", "--set", "n_raters=2")


def test_a_study_from_creation_to_export(root: str, tmp_path: Path) -> None:
    text = tmp_path / "instructions.md"
    text.write_text("# Look at *appearance* only", encoding="utf-8")
    settings = ("--set", "n_pairs=5", "--set", "min_seconds=0", "--instructions", str(text))
    hint = f"now `popalign study links mine --new N --root {root}` invites raters"
    assert study(root, *CREATE, *settings) == f"5 pair(s); {hint}\n"
    lines = study(root, "links", "mine", "--new", "2", "--url", "https://study.example/").splitlines()
    assert [line.split("\t")[2] for line in lines] == ["0/16", "0/16"]
    assert all(line.split("\t")[1].startswith("https://study.example/s/mine/join/") for line in lines)
    assert len({line.split("\t")[3] for line in lines}) == 2
    database = ReviewDatabase(f"sqlite:///{root}/reviews.sqlite")
    assert [prefer(database, rater, "b") for rater, _, _ in database.raters("mine")] == [16, 16]
    assert "2 rater(s)     32 of 32 answers" in study(root, "list")
    results = study(root, "results", "mine")
    assert "base against aligned; a tie counts half" in results
    assert "fairness     majority  0.000 (0.000 to 0.607)" in results
    assert "not measured: all answers are the same" in results
    assert "0 of 2 rater(s) flagged" in results
    assert study(root, "export", "mine", str(tmp_path / "votes.parquet")).startswith("32 row(s) are in")
    assert len(pd.read_parquet(tmp_path / "votes.parquet")) == 32
    study(root, "report", "mine", str(tmp_path / "study.html"))
    page = (tmp_path / "study.html").read_text(encoding="utf-8")
    assert "<em>appearance</em>" in page
    assert "32 votes of 2 raters; 0 of them did not pass" in page
    assert study(root, "instructions", "mine") == "# Look at *appearance* only\n"


def test_a_closed_rater_makes_room_for_another(root: str) -> None:
    study(root, *CREATE)
    study(root, "links", "mine", "--new", "2")
    assert "every pair has its 2 raters" in study(root, "links", "mine", "--new", "1", code=3)
    assert study(root, "close", "mine", "1").startswith("rater 1 is closed")
    assert [line.split("\t")[2] for line in study(root, "links", "mine", "--new", "1").splitlines()] == [
        "closed",
        "0/18",
        "0/18",
    ]


def test_single_pictures_have_five_raters(root: str) -> None:
    study(root, "create", "mine", "base", "aligned", "--run", RUN, "--kind", "images")
    assert len(study(root, "links", "mine", "--new", "5").splitlines()) == 5


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("links", "none"), 5, "there are no studies: "),
        ((*CREATE[:3], "cads", *CREATE[4:]), 3, "has no images of cads"),
        ((*CREATE, "--set", "set_size=50"), 2, "set_size: Input should be less than or equal to 20"),
        ((*CREATE, "--set", "colour=red"), 2, "colour: unknown field"),
        ((*CREATE, "--instructions", "/nowhere.md"), 3, "/nowhere.md cannot be read"),
        ((*CREATE, "--benchmark", "couples"), 3, "have no benchmark 'couples'; they have: neutral"),
        (("create", "a/b", *CREATE[2:]), 5, "study 'a/b' cannot name a folder"),
        (("list", "--database", "mysql://x/y"), 5, "cannot be opened"),
    ],
)
def test_mistakes_have_a_message_and_a_code(root: str, words: tuple[str, ...], code: int, message: str) -> None:
    assert message in study(root, *words, code=code)


def test_a_store_elsewhere_needs_a_database(root: str) -> None:
    assert "votes cannot be kept in s3://bucket" in study("s3://bucket", "list", code=2)


def test_serving_other_machines_without_a_token_is_refused(root: str) -> None:
    result = CliRunner().invoke(app, ["review", "--host", "0.0.0.0", "--root", root])
    assert (result.exit_code, "give a token with --token" in result.output) == (2, True)


def test_a_port_in_use_is_said(root: str) -> None:
    study(root, *CREATE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["review", "--root", root, "--port", port])
    assert result.exit_code == 2, result.output
    assert f"cannot listen on 127.0.0.1 port {port}: the port is in use; give another --port" in result.output


def test_sets_are_curated_and_published(tmp_path: Path) -> None:
    root = make_run(tmp_path / "store").root
    made = study(root, "curate", "sets", "--run", RUN, "--set", "set_size=6")
    assert made == f"2 set(s); now `popalign study links sets --new N --root {root}` invites curators\n"
    assert "no set of study 'sets' is finished" in study(root, "publish", "sets", code=3)
    assert study(root, "links", "sets", "--new", "1").split("\t")[2] == "0/2"
    database = ReviewDatabase(f"sqlite:///{root}/reviews.sqlite")
    ((taken, steps), _) = let_judge(database, "sets", database.raters("sets")[0][0])
    key, how = study(root, "publish", "sets").splitlines()
    assert how == f"Train on it with --set preferences.strategy=human --set preferences.curated={key}"
    assert f"finished   {steps} step(s), {taken} taken" in study(root, "results", "sets")
    assert "sets of 6" in study(root, "list")
    assert study(root, "export", "sets", str(tmp_path / "sets.parquet")).startswith("12 row(s) are in")
    study(root, "report", "sets", str(tmp_path / "sets.html"))
    assert "A finished set took" in (tmp_path / "sets.html").read_text(encoding="utf-8")
    assert "has no run with a report ('run')" in study(root, "report", "sets", code=3)


def test_pictures_are_labelled_and_exported(tmp_path: Path) -> None:
    root = make_run(tmp_path / "store").root
    axes = ("--axis", "gender=non-binary", "--axis", "couple=two men, two women")
    made = study(root, "label", "labels", "--run", RUN, *axes, "--set", "n_images=5", "--set", "n_raters=1")
    assert made == f"5 image(s); now `popalign study links labels --new N --root {root}` invites raters\n"
    study(root, "links", "labels", "--new", "1")
    database = ReviewDatabase(f"sqlite:///{root}/reviews.sqlite")
    ((rater, _, n_asked),) = database.raters("labels")
    assert n_asked == 10
    while turn := database.turn(rater.rater_id):
        said = {"gender": "=non-binary", "couple": "=two women"}[turn.asked.question]
        database.vote(rater.rater_id, turn.asked.asked_id, said, 1.0)
    lines = study(root, "results", "labels").splitlines()
    assert lines[0] == "10 label(s) of 1 rater(s)"
    assert "gender       non-binary                5 label(s), most labels of 5 image(s)" in lines
    assert "couple       agreement not measured: no pair has two raters yet" in lines
    assert study(root, "export", "labels", str(tmp_path / "l.csv"), "--known-only").startswith("10 row(s)")
    assert set(pd.read_csv(tmp_path / "l.csv")["class"]) == {"cannot tell"}
    study(root, "report", "labels", str(tmp_path / "labels.html"))
    assert "10 labels of 1 people" in (tmp_path / "labels.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("curate", "x", "--run", RUN, "--set", "set_size=1"), 2, "set_size: Input should be greater than or equal"),
        (("curate", "x", "--run", RUN, "--set", "set_size=30"), 3, "has images for a set of 30"),
        (("label", "x", "--run", RUN, "--axis", "couple=one"), 2, "give 2 to 34, such as couple=one,another"),
        (("label", "x", "--run", RUN, "--images", "sample-eval:base"), 3, "has no images 'sample-eval:base'"),
        (("curate", "x", "--run", "other"), 3, "there is no complete run 'other'"),
    ],
)
def test_mistakes_in_other_studies_have_a_message(
    tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    assert message in study(make_run(tmp_path / "store").root, *words, code=code)


def test_the_token_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr(flows.review.app, "serve", lambda url, settings: served.append(settings))
    (tmp_path / "token").write_text("a-token-of-this-test\n# who has it: the lab\n", encoding="utf-8")
    words = ["review", "--root", str(tmp_path), "--host", "0.0.0.0"]
    result = CliRunner().invoke(app, [*words, "--token-file", str(tmp_path / "token")])
    assert result.exit_code == 0, result.output
    assert served[0].token == "a-token-of-this-test"
    for name, code in (("absent", 3), ("empty", 2)):
        (tmp_path / "empty").write_text("", encoding="utf-8")
        assert CliRunner().invoke(app, [*words, "--token-file", str(tmp_path / name)]).exit_code == code


@pytest.mark.parametrize(
    ("words", "variable", "hint"),
    [
        ({}, None, "popalign study links mine --new N"),
        ({"root": "my store"}, None, "popalign study links mine --new N --root 'my store'"),
        ({"database": "sqlite:///x.sqlite"}, None, "popalign study links mine --new N --database sqlite:///x.sqlite"),
        (
            {"root": "s", "database": "postgresql://me:hunter2hunter2@host/db"},
            None,
            "popalign study links mine --new N --root s --database 'postgresql://me:***@host/db'",
        ),
        ({"database": "postgresql://me:hunter2hunter2@host/db"}, "the same", "popalign study links mine --new N"),
    ],
)
def test_the_next_command_goes_to_the_same_database_and_shows_no_password(
    words: dict[str, str], variable: str | None, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("POPALIGN_REVIEW_DATABASE", words["database"])
    assert links_command("mine", "N", words.get("database"), words.get("root")) == hint


@pytest.mark.parametrize(
    "words", [("list",), ("results", "mine"), ("links", "mine", "--new", "1"), ("publish", "mine")]
)
def test_where_there_are_no_studies_none_is_looked_for_and_nothing_is_made(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    said = study(str(tmp_path / "none"), *words, code=5)
    assert f"there are no studies: {tmp_path}/none/reviews.sqlite is not there; make one with `popalign study" in said
    assert list(tmp_path.iterdir()) == []
