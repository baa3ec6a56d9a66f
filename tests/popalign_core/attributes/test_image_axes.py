"""Axes that are read off whole pictures: no face is needed, and classifiers of faces read beside."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from onnx_files import write_colour_network
from PIL import Image

from popalign_core.attributes.classifier_factory import build_classifier
from popalign_core.attributes.classifier_interface import FaceReading, unreadable
from popalign_core.attributes.filtering import check_classifier, filter_readings
from popalign_core.attributes.people_labels import PeopleClassifier
from popalign_core.attributes.voting import VotingClassifier, agree_by_vote
from popalign_core.config import AttributesConfig, Axis
from popalign_core.config.axes import COUPLE, GENDER
from popalign_core.errors import InputError
from popalign_core.portraits import weights_folder
from popalign_core.portraits.occupations import OCCUPATIONS

TONE = Axis(name="tone", classes=("dark", "light"), of="picture", only_measured=True)
LIGHT, DARK = (np.full((20, 20, 3), value, np.uint8) for value in (230, 30))
WORK = ("firefighter", "doctor", "chef")


def tone_config(folder: Path, *names: str) -> AttributesConfig:
    path = write_colour_network(folder / "tone.onnx", np.repeat([[-20.0, 20.0]], 3, axis=0), [30.0, -30.0], (16, 16))
    described = {
        "kind": "onnx", "path": str(path), "axes": {"tone": {"dark": "dark", "light": "light"}},
        "labels": ["dark", "light"], "mean": (0, 0, 0), "std": (1, 1, 1),
    }  # fmt: skip
    return AttributesConfig.model_validate({"classifier": [*names, "tone"], "classifiers": {"tone": described}})


def build(settings: AttributesConfig, *axes: Axis):
    of_image = {axis.name for axis in axes if axis.of == "picture"}
    return build_classifier(settings, "cpu", dict.fromkeys(settings.classifiers, "0123456789abcdef"), of_image)


def test_a_picture_without_a_face_has_its_class_and_no_drop_reason(tmp_path):
    settings = tone_config(tmp_path)
    classifier = build(settings, TONE)
    assert classifier.version == "0123456789ab"  # no detector: none is loaded
    table = filter_readings(classifier.read([LIGHT, DARK]), ["a", "b"], [TONE], settings, "tone@1")
    assert table["class"].tolist() == ["light", "dark"]
    assert table["drop_reason"].isna().all()
    assert table["box"].isna().all()
    assert classifier.read([]) == []


def test_of_a_face_the_same_axis_needs_one(tmp_path):
    """What the classifier read before there were axes of pictures: with a detector, nothing."""
    settings = tone_config(tmp_path)
    face = TONE.model_copy(update={"of": "face"})
    table = filter_readings(build(settings, face).read([LIGHT]), ["a"], [face], settings, "tone@1")
    assert table["drop_reason"].tolist() == ["no_face"]


def test_faces_and_pictures_are_read_side_by_side(tmp_path):
    """The embedded classifier sees no face in plain colours; the other one's axis does not mind, in either order."""
    for names in (("portraits",), ()):
        settings = tone_config(tmp_path, *names)
        if not names:
            settings = settings.model_copy(update={"classifier": ("tone", "portraits")})
        classifier = build(settings, TONE, GENDER)
        check_classifier(classifier, [GENDER, TONE])
        table = filter_readings(classifier.read([LIGHT, DARK]), ["a", "b"], [GENDER, TONE], settings, "v")
        assert table["class"].tolist() == [None, "light", None, "dark"]
        assert table["drop_reason"].tolist() == ["no_face", None, "no_face", None]


def test_several_faces_are_no_reason_on_an_axis_of_the_picture():
    couple = dict.fromkeys(COUPLE.classes, 0.1) | {"two women": 0.8}
    reading = FaceReading(2, (1, 1, 9, 9), 0.9, {"gender": {"male": 0.9, "female": 0.1}, "couple": couple})
    table = filter_readings([reading], ["a"], [GENDER, COUPLE], AttributesConfig(), "v")
    assert table["drop_reason"].tolist() == ["several_faces", None]
    assert table["class"].tolist() == [None, "two women"]
    assert table["n_faces"].tolist() == [2, 2]
    assert table["box"].tolist() == [[1, 1, 9, 9], None]


def test_doubt_and_unreadable_pictures_are_still_reasons():
    even = FaceReading(0, None, 0.0, {"tone": {"dark": 0.5, "light": 0.5}})
    settings = AttributesConfig(min_probability=0.6)
    table = filter_readings([even, unreadable("undecodable image")], ["a", "b"], [TONE], settings, "v")
    assert table["drop_reason"].tolist() == ["unsure", "undecodable image"]
    assert table["class"].isna().all()
    with pytest.raises(InputError, match=r"image a: the reading has no 'tone' probability for \['dark', 'light'\]"):
        filter_readings([FaceReading(1, None, 1.0, {})], ["a"], [TONE], settings, "v")


def test_people_and_a_network_vote_on_pictures(tmp_path):
    said = pd.DataFrame([("a", "tone", "light"), ("b", "tone", "light")], columns=["image_id", "axis", "class"])
    people = PeopleClassifier("people", "1", {"tone": ("dark", "light")}, said)
    classifier = VotingClassifier([build(tone_config(tmp_path), TONE), people], {"tone"})
    readings = classifier.read([LIGHT, DARK, DARK], ["a", "b", "c"])
    assert [agree_by_vote(reading) for reading in readings] == [{"tone": True}, {"tone": False}, {"tone": False}]
    table = filter_readings(readings, ["a", "b", "c"], [TONE], AttributesConfig(), "v")
    assert table["class"].tolist() == ["light", None, None]


def test_the_embedded_clip_reads_what_pictures_show_and_the_embedded_classifier_who():
    """A row of the card's sheet an occupation: CLIP tells three of them by words, faces or not."""
    sheet = np.asarray(Image.open(weights_folder() / "neutral.png").convert("RGB"))
    rows = [[occupation.name for occupation in OCCUPATIONS].index(name) for name in WORK]
    pictures = [sheet[64 * row : 64 * row + 64, 64 * i : 64 * i + 64] for row in rows for i in range(12)]
    axis = Axis(name="work", classes=WORK, of="picture", only_measured=True)
    words = {name: name for name in WORK}
    settings = AttributesConfig.model_validate(
        {
            "classifier": ["portraits", "clip"],
            "classifiers": {"clip": {"kind": "clip", "path": str(weights_folder() / "clip"), "axes": {"work": words}}},
        }
    )
    readings = build(settings, axis, GENDER).read(pictures)
    ids = [str(i) for i in range(len(pictures))]
    table = filter_readings(readings, ids, [GENDER, axis], settings, "v")
    shown = table[table["axis"] == "work"]
    assert shown["drop_reason"].isna().all()
    right = [name == WORK[i // 12] for i, name in enumerate(shown["class"])]
    assert np.mean(right) > 0.9
    assert table.loc[table["axis"] == "gender", "class"].notna().mean() > 0.7
