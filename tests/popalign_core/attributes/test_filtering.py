"""Filtering: every drop has a reason and every image keeps its rows (pitfall 4); identities by column (pitfall 3)."""

import numpy as np
import pandas as pd
import pytest

from popalign_core.attributes.classifier_interface import FaceReading, abstain, unreadable
from popalign_core.attributes.filtering import check_classifier, classes_by_image, filter_readings
from popalign_core.config import AttributesConfig, Axis, PromptsConfig
from popalign_core.errors import InputError
from popalign_core.identities.augment import augment_prompts
from popalign_core.prompts.grammar import write_prompts

GENDER = Axis(name="gender", classes=("male", "female"))
RACE = Axis(name="race", classes=("white", "black", "asian"))
AXES = (GENDER, RACE)
CONFIG = AttributesConfig(min_face_score=0.5, min_face_share=0.1, min_probability=0.6)
SURE = {"gender": {"male": 0.1, "female": 0.9}, "race": {"white": 0.2, "black": 0.7, "asian": 0.1}}
BOX = (1.0, 2.0, 3.0, 4.0)


def face(probabilities=SURE, *, n=1, score=0.9, share=0.5):
    return FaceReading(n, BOX, score, probabilities, share)


NO_FACE = FaceReading(0, None, 0.0, {})


def one(reading, config=CONFIG):
    return filter_readings([reading], ["i"], AXES, config, "fake@1")


def test_a_good_face_keeps_its_classes_and_probabilities():
    table = one(face())
    assert list(table.columns) == [
        "image_id", "n_faces", "box", "detector_score", "axis", "class", "probability", "classifier", "drop_reason",
    ]  # fmt: skip
    assert table["axis"].tolist() == ["gender", "race"]
    assert table["class"].tolist() == ["female", "black"]
    assert table["probability"].tolist() == pytest.approx([0.9, 0.7])
    assert table["drop_reason"].tolist() == [None, None]
    assert table["box"].tolist() == [[1.0, 2.0, 3.0, 4.0]] * 2
    assert (table["n_faces"].dtype, table["probability"].dtype) == (np.int32, np.float32)
    assert set(table["classifier"]) == {"fake@1"}


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        (NO_FACE, "no_face"),
        (face(score=0.49), "low_face_score"),
        (face(share=0.09), "small_face"),
        (face(n=2), "several_faces"),
        (face(n=2, score=0.1, share=0.0), "low_face_score"),
    ],
)
def test_an_unusable_face_has_one_reason_on_all_its_rows(reading, reason):
    table = one(reading)
    assert table["drop_reason"].tolist() == [reason, reason]
    assert table["class"].tolist() == [None, None]
    assert table["probability"].isna().tolist() == [True, True]


def test_of_several_faces_the_largest_counts_where_the_configuration_says_so():
    largest = CONFIG.model_copy(update={"several_faces": "largest"})
    assert one(face(n=3), largest)["class"].tolist() == ["female", "black"]
    assert one(face(n=3), largest)["n_faces"].tolist() == [3, 3]
    assert one(face(n=3, share=0.09), largest)["drop_reason"].tolist() == ["small_face"] * 2


def test_what_could_not_be_looked_at_keeps_its_reason():
    table = one(unreadable("undecodable image"))
    assert table["drop_reason"].tolist() == ["undecodable image"] * 2
    assert table["class"].tolist() == [None, None]


def test_abstaining_on_one_axis_leaves_the_other():
    table = one(face(SURE | {"gender": abstain(("male", "female"))}))
    assert table["drop_reason"].tolist() == ["unsure", None]
    assert table["class"].tolist() == [None, "black"]


def test_thresholds_themselves_pass():
    edge = {"gender": {"male": 0.4, "female": 0.6}, "race": {"white": 0.6, "black": 0.4, "asian": 0.0}}
    assert one(face(edge, score=0.5, share=0.1))["drop_reason"].tolist() == [None, None]


def test_doubt_drops_only_the_axis_in_doubt():
    table = one(face(SURE | {"race": {"white": 0.3, "black": 0.5, "asian": 0.2}}))
    assert table["class"].tolist() == ["female", None]
    assert table["drop_reason"].tolist() == [None, "unsure"]
    assert table["probability"].tolist() == pytest.approx([0.9, 0.5])


def test_the_likeliest_class_may_be_one_the_axis_does_not_have():
    """Renormalising over the axis's classes would read every such face as white."""
    table = one(face(SURE | {"race": {"white": 0.2, "black": 0.0, "asian": 0.0, "indian": 0.8}}))
    assert table["class"].tolist() == ["female", None]
    assert table["drop_reason"].tolist() == [None, "unsure"]


def test_equal_probabilities_go_to_the_first_class_of_the_axis():
    probabilities = {"gender": {"female": 0.5, "male": 0.5}, "race": SURE["race"]}
    assert one(face(probabilities), AttributesConfig())["class"][0] == "male"


def test_no_image_is_lost():
    readings = [face(), NO_FACE, face(n=3), face(score=0.1), face(share=0.01), NO_FACE]
    ids = [f"i{n}" for n in range(6)]
    table = filter_readings(readings, ids, AXES, CONFIG, "fake@1")
    assert table["image_id"].tolist() == [name for name in ids for _ in AXES]
    counts = table[table["axis"] == "gender"]["drop_reason"].fillna("kept").value_counts().to_dict()
    assert counts == {"kept": 1, "no_face": 2, "several_faces": 1, "low_face_score": 1, "small_face": 1}


def test_an_empty_batch_gives_an_empty_table():
    assert filter_readings([], [], AXES, CONFIG, "fake@1").shape == (0, 9)


def test_counts_that_differ_are_refused():
    with pytest.raises(InputError, match="1 readings for 2 images"):
        filter_readings([NO_FACE], ["a", "b"], AXES, CONFIG, "fake@1")


def test_readings_that_are_no_probabilities_are_refused():
    with pytest.raises(InputError, match=r"image i: 'gender' probabilities .*nan.* are not all within \[0, 1\]"):
        one(face(SURE | {"gender": {"male": float("nan"), "female": 0.5}}))
    with pytest.raises(InputError, match="image i: the reading has no 'race' probability for"):
        one(face({"gender": SURE["gender"]}))


class Reader:
    name, version = "fake", "1"

    def __init__(self, axes):
        self.axes = axes

    def read(self, pixels_u8):
        return [NO_FACE for _ in pixels_u8]


def test_a_reader_must_have_every_class_of_every_axis():
    check_classifier(Reader({"gender": ("female", "male"), "race": ("white", "black", "asian", "indian")}), AXES)
    with pytest.raises(
        InputError, match=r"fake@1 has no class \['asian'\] for the axis 'race', only \['white', 'black'\]"
    ):
        check_classifier(Reader({"gender": ("male", "female"), "race": ("white", "black")}), AXES)
    with pytest.raises(InputError, match=r"fake@1 does not read the axis 'race', only \['gender'\]"):
        check_classifier(Reader({"gender": ("male", "female")}), AXES)


PROMPTS = augment_prompts(write_prompts(PromptsConfig(train_subjects=("doctor",))), AXES)


def prompt_id(text):
    return PROMPTS.set_index("text")["prompt_id"][text]


def images(*rows):
    return pd.DataFrame([(name, prompt_id(text)) for name, text in rows], columns=["image_id", "prompt_id"])


BLACK_WOMAN = "a photo of a black female doctor"
BLACK_MAN = "a photo of a black male doctor"


def test_classes_survive_what_parquet_does_to_missing_values():
    table = filter_readings([face(), NO_FACE], ["a", "b"], AXES, CONFIG, "fake@1").astype(
        {"class": "str", "drop_reason": "str"}
    )
    assert table["drop_reason"].isna().sum() == 2
    seen = classes_by_image(table)
    assert seen["a"]["gender"] == ("female", None)
    assert seen["b"] == {"gender": (None, "no_face"), "race": (None, "no_face")}


def test_an_image_that_was_read_twice_is_refused():
    table = filter_readings([face()], ["a"], (GENDER,), CONFIG, "fake@1")
    with pytest.raises(InputError, match=r"1 \(image, axis\) pairs are in the attributes twice, e\.g\. image a"):
        classes_by_image(pd.concat([table, table]))
