"""Studies of labels: from a run's pictures to what calibration and the people's classifier read."""

from pathlib import Path

import pandas as pd
import pytest
from curation_worlds import GENDER, RUN, make_labelling, make_run

from popalign_core.config import AttributesConfig, Axis, PipelineConfig, PromptsConfig, RuntimeConfig
from popalign_core.config.attributes import PeopleConfig
from popalign_core.config.review import CANNOT_TELL, LabelQuestion
from popalign_core.errors import InputError
from storage.reviews.review_tables import ANSWER_PREFIX
from storage.reviews.votes import ReviewDatabase
from storage.store import ArtifactRef, Store
from tasks.stages.attributes import read_attributes
from tasks.stages.calibration import calibrate_classifier
from tasks.studies.labelling import create_labelling, label_results, label_table
from tasks.studies.study_records import invite, read_nodes
from tasks.studies.study_results import export_study, results_section


def truth(store: Store) -> dict[str, str]:
    read = store.read_table(read_nodes(store, RUN)["attributes"], "attributes")
    return dict(zip(read["image_id"], read["class"], strict=True))


def say(database: ReviewDatabase, words: dict[str, list[str]], n_raters: int = 3) -> None:
    """Rater i says the i-th word of each image."""
    study = database.study("labels")
    for number in range(n_raters):
        rater = invite(database, study)
        while turn := database.turn(rater.rater_id):
            word = words[turn.pair.images_a[0]][number]
            assert database.vote(rater.rater_id, turn.asked.asked_id, f"{ANSWER_PREFIX}{word}", 1.0)


def images_of(database: ReviewDatabase) -> list[str]:
    from storage.reviews.chain_steps import read_asked

    invite(database, database.study("labels"))
    found = sorted({pair.images_a[0] for _, pair in read_asked(database, "labels")})
    database.close_rater("labels", 1)
    return found


def labelled(tmp_path: Path) -> tuple[ReviewDatabase, Store, list[str], dict[str, str]]:
    """Five images as the classifier saw them, two of these only by most; one non-binary; one that nobody can tell."""
    database, store = make_labelling(tmp_path, n_images=7)
    images, seen = images_of(database), truth(store)
    other = {"male": "female", "female": "male"}
    words = {image_id: [seen[image_id]] * 3 for image_id in images}
    for image_id in images[:2]:
        words[image_id] = [seen[image_id], other[seen[image_id]], seen[image_id]]
    words[images[5]] = ["non-binary"] * 3
    words[images[6]] = [CANNOT_TELL, seen[images[6]], CANNOT_TELL]
    say(database, words)
    return database, store, images, seen


def test_the_table_holds_every_word_and_the_results_count_them(tmp_path: Path) -> None:
    database, _, images, seen = labelled(tmp_path)
    table = label_table(database, "labels")
    assert len(table) == 3 * 7
    assert set(table["image_id"]) == set(images)
    results = label_results(database, "labels")
    counts = results.counts.set_index("class")
    assert counts.loc["non-binary", ["n", "n_images"]].tolist() == [3, 1]
    assert counts.loc[CANNOT_TELL, ["n", "n_images"]].tolist() == [2, 1]
    of_seen = [sum(seen[image_id] == name for image_id in images[:5]) for name in GENDER.classes]
    assert counts.loc[list(GENDER.classes), "n_images"].tolist() == of_seen
    (agreement,) = results.agreement.to_dict("records")
    assert (agreement["axis"], agreement["n_pairs"]) == ("gender", 6), "one label alone agrees with nobody"
    assert 0.4 < agreement["alpha"] < 1
    section = results_section(database, "labels")
    assert "21 labels of 3 people" in section
    assert "Agreement on gender (Krippendorff" in section


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_classifier_is_calibrated_by_the_labels(tmp_path: Path, ending: str) -> None:
    database, store, _, _ = labelled(tmp_path)
    nodes, config = (
        read_nodes(store, RUN),
        PipelineConfig(axes=(GENDER,), prompts=PromptsConfig(train_subjects=("doctor",))),
    )
    runtime = RuntimeConfig(root=store.root)

    def calibrate(*, known_only: bool) -> ArtifactRef:
        path = tmp_path / f"labels{ending}"
        assert export_study(database, "labels", path, known_only=known_only) == 21
        refs = {"prompts": nodes["identities"], "sample": nodes["sample"], "attributes": nodes["attributes"]}
        return calibrate_classifier(**refs, labels=str(path), config=config, runtime=runtime)

    with pytest.raises(InputError, match="non-binary"):
        calibrate(known_only=False)
    table = store.read_table(calibrate(known_only=True), "calibration")
    assert table["n"].sum() == 5, "not the one nobody can tell, nor the one the classifier has no class for"
    right = table[table["true_class"] == table["read_class"]]
    assert right["n"].sum() == 5
    assert set(right["share"].dropna()) == {1.0}


def test_people_are_a_classifier_with_a_class_of_their_own(tmp_path: Path) -> None:
    database, store, images, seen = labelled(tmp_path)
    export_study(database, "labels", tmp_path / "labels.csv")
    axis = Axis(name="gender", classes=("male", "female", "non-binary"))
    people = PeopleConfig(kind="people", path=str(tmp_path / "labels.csv"), axes={"gender": axis.classes})
    config = PipelineConfig(
        axes=(axis,),
        prompts=PromptsConfig(train_subjects=("doctor",)),
        attributes=AttributesConfig(classifier="people", classifiers={"people": people}),
    )
    nodes = read_nodes(store, RUN)
    ref = read_attributes(
        nodes["identities"], nodes["sample"], config=config, runtime=RuntimeConfig(root=store.root, device="cpu")
    )
    read = store.read_table(ref, "attributes").set_index("image_id").loc[images]
    assert read["class"].tolist()[:5] == [seen[image_id] for image_id in images[:5]]
    assert read["class"].iloc[5] == "non-binary"
    assert read["drop_reason"].iloc[6] == "unsure", "most could not tell"
    assert read["probability"].iloc[0] == pytest.approx(2 / 3)


def test_couples_are_an_axis_that_the_run_does_not_have(tmp_path: Path) -> None:
    store = make_run(tmp_path / "store")
    database = ReviewDatabase(f"sqlite:///{tmp_path / 'x.sqlite'}")
    create_labelling(
        database, store, "labels", RUN, classes={"couple": ("two men", "two women", "other")}, settings={"n_images": 2}
    )
    (question,) = database.study("labels").config["questions"]
    assert question == {"axis": "couple", "classes": [], "free": ["two men", "two women", "other"]}
    with pytest.raises(ValueError, match="give 2 to 34, such as couple=one,another"):
        create_labelling(database, store, "more", RUN, classes={"couple": ("two men",)}, settings={})
    with pytest.raises(InputError, match="has no images 'train'; it has: sample"):
        create_labelling(database, store, "more", RUN, classes={}, settings={}, node="train")


def test_cannot_tell_is_always_an_answer_and_never_a_class() -> None:
    with pytest.raises(ValueError, match="leave 'cannot tell' out"):
        LabelQuestion(axis="gender", classes=("male", CANNOT_TELL))


def test_a_table_is_in_the_order_of_the_raters(tmp_path: Path) -> None:
    database, _, _, _ = labelled(tmp_path)
    table = label_table(database, "labels")
    pd.testing.assert_frame_equal(table, table.sort_values(["rater", "position"], ignore_index=True))
