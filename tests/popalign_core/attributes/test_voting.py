"""Several readers vote: agreement is a class, disagreement is unsure, and both are counted."""

import numpy as np
import pandas as pd
import pytest

from popalign_core.attributes.filtering import check_reader, filter_readings
from popalign_core.attributes.people_labels import PeopleReader
from popalign_core.attributes.voting import VotingReader, agree_by_vote
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
    return PeopleReader(name, "1", axes, pd.DataFrame(rows, columns=["image_id", "axis", "class"]))


FIRST = people("one", {"gender": GENDER, "race": RACE}, ["male", "female", "male", None], ["white"] * 3 + [None])
SECOND = people("two", {"gender": GENDER}, ["male", "male", None, "male"])
READER = VotingReader([FIRST, SECOND])


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
    doubtful = PeopleReader(
        "four",
        "1",
        {"gender": GENDER},
        pd.DataFrame(
            [("a", "gender", said) for said in ("male", "male", "female")], columns=["image_id", "axis", "class"]
        ),
    )
    shares = VotingReader([third, doubtful]).read(PICTURES[:1], ["a"])[0].probabilities["gender"]
    assert (shares["male"], shares["female"]) == pytest.approx((5 / 6, 1 / 6))


def test_a_class_that_one_lacks_can_never_win_and_is_refused():
    wide = people("wide", {"race": (*RACE, "indian")}, ["indian", "white", "black", "black"])
    narrow = people("narrow", {"race": RACE}, ["white", "white", "black", "white"])
    reader = VotingReader([wide, narrow])
    assert reader.axes == {"race": RACE}
    with pytest.raises(InputError, match=r"wide\+narrow@1\+1 has no class \['indian'\] for the axis 'race'"):
        check_reader(reader, [Axis(name="race", classes=(*RACE, "indian"))])
    assert [agree_by_vote(reading)["race"] for reading in reader.read(PICTURES, IDS)] == [False, True, True, False]
