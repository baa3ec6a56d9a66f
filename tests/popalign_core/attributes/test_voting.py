"""Several readers vote: agreement is a class, disagreement is unsure, and both are counted."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from popalign_core.attributes.classifier_interface import FaceReading, unreadable
from popalign_core.attributes.filtering import check_classifier, filter_readings
from popalign_core.attributes.people_labels import PeopleClassifier
from popalign_core.attributes.voting import VotingClassifier, agree_by_vote
from popalign_core.config import AttributesConfig, Axis
from popalign_core.errors import InputError

IDS = ["a", "b", "c", "d"]
PICTURES = [np.zeros((8, 8, 3), np.uint8)] * 4
GENDER, RACE = ("male", "female"), ("white", "black")


def people(name, axes, *columns):
    rows = [
        (image_id, axis, said)
        for (axis, _), words in zip(axes.items(), columns, strict=True)
        for image_id, said in zip(IDS, words, strict=True)
        if said
    ]
    return PeopleClassifier(name, "1", axes, pd.DataFrame(rows, columns=["image_id", "axis", "class"]))


FIRST = people("one", {"gender": GENDER, "race": RACE}, ["male", "female", "male", None], ["white"] * 3 + [None])
SECOND = people("two", {"gender": GENDER}, ["male", "male", None, "male"])
READER = VotingClassifier([FIRST, SECOND])


def test_agreement_is_a_class_and_disagreement_is_unsure():
    readings = READER.read(PICTURES, IDS)
    axes = [Axis(name="gender", classes=GENDER), Axis(name="race", classes=RACE)]
    table = filter_readings(readings, IDS, axes, AttributesConfig(), "v").set_index(["image_id", "axis"])
    assert table["class"].tolist() == ["male", "white", None, "white", None, "white", None, None]
    # the first one decides about faces: d has none for it; the race is its alone
    assert table["drop_reason"].tolist() == [None, None, "unsure", None, "unsure", None, "unlabelled", "unlabelled"]
    assert [agree_by_vote(reading) for reading in readings] == [
        {"gender": True},
        {"gender": False},
        {"gender": False},
        {},
    ]


def test_it_names_all_and_its_order_counts():
    assert (READER.name, READER.version) == ("one+two", "1+1")
    assert READER.axes == {"gender": GENDER, "race": RACE}


def test_agreed_probabilities_are_means():
    third = people("three", {"gender": GENDER}, ["male"] * 4)
    doubtful = PeopleClassifier(
        "four",
        "1",
        {"gender": GENDER},
        pd.DataFrame(
            [("a", "gender", said) for said in ("male", "male", "female")], columns=["image_id", "axis", "class"]
        ),
    )
    shares = VotingClassifier([third, doubtful]).read(PICTURES[:1], ["a"])[0].probabilities["gender"]
    assert (shares["male"], shares["female"]) == pytest.approx((5 / 6, 1 / 6))


def test_a_class_that_one_lacks_can_never_win_and_is_refused():
    wide = people("wide", {"race": (*RACE, "indian")}, ["indian", "white", "black", "black"])
    narrow = people("narrow", {"race": RACE}, ["white", "white", "black", "white"])
    classifier = VotingClassifier([wide, narrow])
    assert classifier.axes == {"race": RACE}
    with pytest.raises(InputError, match=r"wide\+narrow@1\+1 has no class \['indian'\] for the axis 'race'"):
        check_classifier(classifier, [Axis(name="race", classes=(*RACE, "indian"))])
    assert [agree_by_vote(reading)["race"] for reading in classifier.read(PICTURES, IDS)] == [False, True, True, False]


def seeing(name, axes, *readings):
    """A classifier with its own eyes: what it says of each image."""
    return SimpleNamespace(name=name, version="1", axes=axes, read=lambda pictures, ids=(): list(readings))


def face(**probabilities):
    return FaceReading(1, (0.0, 0.0, 4.0, 4.0), 0.9, probabilities)


SEEN_GENDER = face(gender={"male": 0.9, "female": 0.1})
SEEN_RACE = face(race={"white": 0.2, "black": 0.8})
NOTHING = FaceReading(0, None, 0.0, {})


@pytest.mark.parametrize("blind", [NOTHING, unreadable("detector_failed"), face(), face(race={})])
def test_the_only_classifier_of_an_axis_may_see_no_face(blind):
    """It abstains on that axis; what the others read stays."""
    classifier = VotingClassifier(
        [
            seeing("one", {"gender": GENDER}, SEEN_GENDER, SEEN_GENDER, NOTHING),
            seeing("two", {"race": RACE}, SEEN_RACE, blind, SEEN_RACE),
        ]
    )
    axes = [Axis(name="gender", classes=GENDER), Axis(name="race", classes=RACE)]
    table = filter_readings(classifier.read(PICTURES[:3]), IDS[:3], axes, AttributesConfig(), "v")
    assert table["class"].tolist() == ["male", "black", "male", None, None, None]
    assert table["drop_reason"].tolist() == [None, None, None, "unsure", "no_face", "no_face"]


def test_of_three_the_one_that_sees_nothing_makes_a_disagreement():
    classifier = VotingClassifier(
        [
            seeing(name, {"gender": GENDER}, seen)
            for name, seen in zip("abc", (SEEN_GENDER, NOTHING, SEEN_GENDER), strict=True)
        ]
    )
    axes = [Axis(name="gender", classes=GENDER)]
    reading = classifier.read(PICTURES[:1])[0]
    assert filter_readings([reading], IDS[:1], axes, AttributesConfig(), "v")["drop_reason"].tolist() == ["unsure"]
    assert agree_by_vote(reading) == {"gender": False}


def test_an_axis_of_the_whole_picture_that_only_one_could_read():
    classifiers = [
        seeing("one", {"place": ("in", "out")}, FaceReading(0, None, 0.0, {"place": {"in": 1.0, "out": 0.0}})),
        seeing("two", {"place": ("in", "out"), "gender": GENDER}, unreadable("reader_died")),
    ]
    reading = VotingClassifier(classifiers, frozenset({"place"})).read(PICTURES[:1])[0]
    axes = [Axis(name="place", classes=("in", "out"), of="picture"), Axis(name="gender", classes=GENDER)]
    table = filter_readings([reading], IDS[:1], axes, AttributesConfig(), "v")
    assert table["drop_reason"].tolist() == ["unsure", "reader_died"]


def test_classifiers_that_can_never_agree_are_refused():
    with pytest.raises(
        InputError, match=r"'gender' have no class in common: .*'two': \['man', 'woman'\].*map them alike"
    ):
        VotingClassifier([seeing("one", {"gender": GENDER}), seeing("two", {"gender": ("man", "woman")})])
