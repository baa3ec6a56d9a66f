"""`popalign study` and `popalign review` from the command line."""

from pathlib import Path

import pandas as pd
import pytest
from study_worlds import RUN, make_store, prefer
from typer.testing import CliRunner

from flows.cli import app
from storage.votes import ReviewDatabase


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
    assert study(root, *CREATE, *settings) == "5 pair(s); now `popalign study links mine --new N` invites raters\n"
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
        (("links", "none"), 3, "there is no study 'none'; there are: none"),
        ((*CREATE[:3], "cads", *CREATE[4:]), 3, "has no images of cads"),
        ((*CREATE, "--set", "set_size=50"), 2, "set_size: Input should be less than or equal to 20"),
        ((*CREATE, "--set", "colour=red"), 2, "colour: Extra inputs are not permitted"),
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
