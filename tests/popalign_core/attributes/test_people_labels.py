"""People's labels as readings: by id, by majority, and never made up."""

import numpy as np
import pandas as pd
import pytest

from popalign_core.attributes.filtering import filter_readings
from popalign_core.attributes.people_labels import PeopleReader, read_labels
from popalign_core.config import AttributesConfig, Axis
from popalign_core.errors import InputError, MissingWeightsError

AXES = {"gender": ("male", "female"), "race": ("white", "black", "asian")}
ROWS = [
    ("a", "gender", "male"), ("a", "gender", "male"), ("a", "gender", "female"), ("a", "race", "black"),
    ("b", "gender", "female"),
    ("c", "gender", "male"), ("c", "gender", "female"), ("c", "race", "white"),
]  # fmt: skip
TABLE = pd.DataFrame(ROWS, columns=["image_id", "axis", "class"])
NOTHING = np.zeros((8, 8, 3), np.uint8)


def judged(ids):
    reader = PeopleReader("people", "1", AXES, TABLE)
    axes = [Axis(name=name, classes=classes) for name, classes in AXES.items()]
    return filter_readings(reader.read([NOTHING] * len(ids), ids), ids, axes, AttributesConfig(), "people@1")


def test_most_people_decide_and_their_share_is_the_probability():
    table = judged(["b", "a"])
    assert table["class"].tolist() == ["female", None, "male", "black"]
    assert table["probability"].tolist() == pytest.approx([1, 1, 2 / 3, 1])
    assert table["drop_reason"].tolist() == [None, "unsure", None, None]  # nobody labelled the race of b


def test_a_tie_is_unsure_and_an_image_that_nobody_saw_says_so():
    table = judged(["c", "z"])
    assert table["drop_reason"].tolist() == ["unsure", None, "unlabelled", "unlabelled"]
    assert table["class"].tolist() == [None, "white", None, None]


def test_pictures_without_ids_are_not_read():
    with pytest.raises(InputError, match="knows stored images by their ids, but 1 came with 0 ids"):
        PeopleReader("people", "1", AXES, TABLE).read([NOTHING])


def test_a_class_that_nobody_could_choose_is_named():
    with pytest.raises(InputError, match=r"the labels \[\('race', 'asain'\)\] are not among the classes"):
        PeopleReader("people", "1", AXES, pd.DataFrame([("a", "race", "asain")], columns=TABLE.columns))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_both_sorts_of_table_are_read_as_text(tmp_path, suffix):
    path = tmp_path / f"labels{suffix}"
    table = TABLE.assign(image_id=["007"] * len(TABLE), rater=1)
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    read = read_labels(path)
    assert read.columns.tolist() == ["image_id", "axis", "class"]
    assert set(read["image_id"]) == {"007"}
    assert read["class"].tolist() == TABLE["class"].tolist()


def test_tables_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "labels.csv"
    with pytest.raises(MissingWeightsError, match="there are no labels at"):
        read_labels(path)
    for content, reason in (
        ("image,axis,class\na,gender,male\n", r"lacks the columns \['image_id'\], it has \['image', 'axis', 'class'\]"),
        ("image_id,axis,class\n", "has 0 rows"),
        ("image_id,axis,class\na,gender,\n", "has 1 rows, 1 with an empty cell"),
        ("", "cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=reason):
            read_labels(path)
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "labels.parquet")
