"""Studies from a store, and votes as a table."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from study_worlds import RUN, SMALL, SYSTEMS, answer_all, make_store, make_study, prefer

from popalign_core.config.review import IMAGES, StudyConfig
from popalign_core.errors import InputError
from storage.formats.images import decode_png
from storage.formats.parquet import decode, to_frame
from storage.reviews.votes import ReviewDatabase
from storage.store import Store
from tasks.studies.pairwise import create_study, find_samples, read_votes, study_results
from tasks.studies.study_records import completion_code
from tasks.studies.study_results import export_study


def test_a_study_shows_the_stores_pictures_of_both_systems(tmp_path: Path) -> None:
    database, study, (rater,) = make_study(tmp_path, n_raters=1)
    assert (study.system_a, study.system_b) == SYSTEMS
    store = Store(str(tmp_path / "store"))
    originals = {
        image_id: decode_png(cell["bytes"])
        for ref in store.list_artifacts()
        if ref.stage == "sample"
        for image_id, cell in store.read_table(ref, "images")[["image_id", "image"]].itertuples(index=False)
    }
    answer_all(database, rater, ["tie"])
    n_spoiled = 0
    for _, _, pair in database.votes("study"):
        sides = ((pair.images_a, pair.pictures_a, False), (pair.images_b, pair.pictures_b, pair.checks == "quality"))
        for image_ids, picture_ids, is_spoiled in sides:
            for image_id, picture_id in zip(image_ids, picture_ids, strict=True):
                data = database.picture("study", picture_id)
                assert data is not None
                shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                assert np.array_equal(shown, originals[image_id]) != is_spoiled
                assert image_id != picture_id
                n_spoiled += is_spoiled
    assert n_spoiled == SMALL.set_size


def test_answers_are_translated_from_the_page_to_the_systems(tmp_path: Path) -> None:
    database, _, raters = make_study(tmp_path, n_raters=3)
    for rater, choice in zip(raters, ("first", "second", "tie"), strict=True):
        assert answer_all(database, rater, [choice], seconds=3.0) == 10
    votes = read_votes(database, "study")
    assert len(votes) == 30
    by_rater = votes.groupby("rater")
    assert sorted(len(given) for _, given in by_rater) == [10, 10, 10]
    kinds = {frozenset(np.where(given["answer"] == given["first"], "first", given["answer"])) for _, given in by_rater}
    assert frozenset({"first"}) in kinds
    assert frozenset({"tie"}) in kinds
    # A stood first in half of the pairs: whoever always says "first" says A and B equally often
    assert votes[~votes["is_check"] & (votes["answer"] != "tie")]["answer"].value_counts().to_dict() == {"a": 8, "b": 8}
    assert set(votes["seconds"]) == {3.0}


def test_raters_are_anonymous_in_the_export(tmp_path: Path) -> None:
    database, study, raters = make_study(tmp_path, n_raters=2)
    for rater in raters:
        answer_all(database, rater, ["tie"])
    export_study(database, "study", tmp_path / "votes.csv")
    text = (tmp_path / "votes.csv").read_text(encoding="utf-8")
    for rater in raters:
        assert rater.rater_id not in text
        assert completion_code(study, rater.rater_id).lower() not in text.lower()
    columns = set(pd.read_csv(tmp_path / "votes.csv").columns)
    assert columns & {"rater_id", "number", "at", "time", "date", "link"} == set()
    # another study's secret gives another pseudonym: people cannot be followed from study to study
    other, _, _ = make_study(tmp_path / "other")
    assert other.study("study").secret != study.secret


def test_parquet_and_csv_hold_the_same_votes(tmp_path: Path) -> None:
    database, _, (rater,) = make_study(tmp_path, n_raters=1)
    answer_all(database, rater, ["first", "tie"])
    for ending in (".parquet", ".csv"):
        assert export_study(database, "study", tmp_path / f"votes{ending}") == 10
    parquet = to_frame([decode("votes", (tmp_path / "votes.parquet").read_bytes(), "votes")])
    csv = pd.read_csv(tmp_path / "votes.csv", keep_default_na=False)
    for name in ("images_a", "images_b"):
        parquet[name] = parquet[name].map(" ".join)
    pd.testing.assert_frame_equal(parquet, csv, check_dtype=False)
    with pytest.raises(InputError, match=r"ends in '.txt'; give a path that ends in .parquet or .csv"):
        export_study(database, "study", tmp_path / "votes.txt")


def test_a_pseudonym_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, _, (rater,) = make_study(tmp_path, n_raters=1)
    answer_all(database, rater, ["first"])
    for digits in ("49347e715232", "123456789012", "000000000012"):
        monkeypatch.setattr("tasks.studies.study_records._keyed", lambda *_, digits=digits: digits * 6)
        export_study(database, "study", tmp_path / "votes.csv")
        assert pd.read_csv(tmp_path / "votes.csv")["rater"].unique().tolist() == [f"r{digits}"]


def test_a_study_without_votes_has_nothing_to_export(tmp_path: Path) -> None:
    database, _, _ = make_study(tmp_path)
    with pytest.raises(InputError, match="has no votes yet"):
        export_study(database, "study", tmp_path / "votes.csv")
    assert list(read_votes(database, "study").columns)[:3] == ["study", "system_a", "system_b"]


def test_results_of_raters_who_prefer_the_second_system(tmp_path: Path) -> None:
    config = StudyConfig(set_size=2, n_checks=6, min_seconds=0.0)
    database, _, raters = make_study(tmp_path, config, n_prompts=12, n_raters=3)
    assert [prefer(database, rater, "b") for rater in raters[:2]] == [30, 30]
    answer_all(database, raters[2], ["first", "second", "tie"])  # without looking
    results = study_results(database, "study")
    assert sorted(results.raters["n_checks"]) == [6, 6, 6]
    assert (results.raters["flag"] != "").sum() == 1
    wins = results.wins[results.wins["by"] == "majority"].set_index("question")
    assert wins["win_rate"].to_dict() == {"fairness": 0.0, "quality": 0.0}
    assert (wins["ci_high"] < 0.5).all()


def test_single_pictures_are_asked_about_one_by_one(tmp_path: Path) -> None:
    config = IMAGES.model_copy(update={"n_checks": 2, "n_raters": 2})
    database, _, raters = make_study(tmp_path, config, n_raters=2)
    assert [answer_all(database, rater, ["first"]) for rater in raters] == [6, 6]
    votes = read_votes(database, "study")
    assert set(votes["question"]) == {"quality"}
    assert set(votes["images_a"].map(len)) == {1}


def test_a_run_without_the_system_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(InputError, match="has no images of cads; it has: aligned, base"):
        find_samples(store, RUN, ["base", "cads"])
    with pytest.raises(InputError, match="no complete run 'other'"):
        find_samples(store, "other", ["base"])


def test_a_failed_creation_leaves_nothing_behind(tmp_path: Path) -> None:
    store, database = make_store(tmp_path / "store"), ReviewDatabase(f"sqlite:///{tmp_path / 'x.sqlite'}")
    source = find_samples(store, RUN, SYSTEMS)
    with pytest.raises(InputError, match=r"0 pair\(s\) of 9 images"):
        create_study(database, store, "study", source, config=SMALL.model_copy(update={"set_size": 9}))
    assert database.studies() == []
