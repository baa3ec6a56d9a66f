"""Confusion matrices of a classifier: hand-worked, from prompts and from people; fit for `corrected_prevalence`."""

import numpy as np
import pandas as pd
import pytest

from popalign_core.config import Axis, EvaluationConfig
from popalign_core.errors import InputError
from popalign_core.evaluation.confusion import (
    asked_classes,
    calibrate,
    confusion_matrix,
    said_classes,
)
from popalign_core.evaluation.fairness import corrected_prevalence

GENDER = Axis(name="gender", classes=("male", "female"))
RACE = Axis(name="race", classes=("white", "black"))
CONFIG = EvaluationConfig(n_bootstrap=500)


def prompts_table(*rows):
    """Rows of (prompt_id, kind, parent_id, identity)."""
    return pd.DataFrame(rows, columns=["prompt_id", "kind", "parent_id", "identity"])


PROMPTS = prompts_table(
    ("n1", "neutral", None, {}), ("n2", "neutral", None, {}),
    ("m1", "specific", "n1", {"gender": "male"}), ("f1", "specific", "n1", {"gender": "female"}),
    ("m2", "specific", "n2", {"gender": "male"}), ("f2", "specific", "n2", {"gender": "female"}),
    ("g", "generic", None, {}),
)  # fmt: skip


def tables(readings):
    """Images and attributes for (prompt_id, read class or None, how often)."""
    rows = [(prompt_id, read) for prompt_id, read, n in readings for _ in range(n)]
    images = pd.DataFrame({"image_id": [f"i{i}" for i in range(len(rows))], "prompt_id": [row[0] for row in rows]})
    attributes = images[["image_id"]].assign(axis="gender", classifier="c@1")
    return images, attributes.assign(**{"class": pd.Series([row[1] for row in rows], dtype=object)})


READINGS = [
    ("m1", "male", 6), ("m1", "female", 1), ("m1", None, 1), ("m2", "male", 3),
    ("f1", "female", 4), ("f2", "male", 2), ("f2", "female", 2), ("f2", None, 2), ("n1", "male", 5),
]  # fmt: skip


def calibrated(readings=READINGS, config=CONFIG):
    images, attributes = tables(readings)
    return calibrate(asked_classes(PROMPTS, images, (GENDER, RACE)), attributes, (GENDER, RACE), config)


def test_hand_worked():
    """Of 11 men 10 were read, 9 as men; of 10 women 8, 2 as men; the neutral images say nothing."""
    table = calibrated()
    assert table.columns.tolist() == [
        "classifier", "axis", "true_class", "read_class", "n", "share", "ci_low", "ci_high",
    ]  # fmt: skip
    rows = {(row.true_class, row.read_class): (row.n, row.share) for row in table.itertuples()}
    assert rows == {
        ("male", "male"): (9, pytest.approx(0.9)),
        ("male", "female"): (1, pytest.approx(0.1)),
        ("male", ""): (1, pytest.approx(1 / 11)),
        ("female", "male"): (2, pytest.approx(0.25)),
        ("female", "female"): (6, pytest.approx(0.75)),
        ("female", ""): (2, pytest.approx(0.2)),
    }
    assert set(table["classifier"]) == {"c@1"}
    assert set(table["axis"]) == {"gender"}  # no prompt names a race
    assert confusion_matrix(table, GENDER) == pytest.approx(np.array([[0.9, 0.1], [0.25, 0.75]]))


def test_the_order_is_the_axis_s_and_the_matrix_undoes_the_classifier():
    turned = Axis(name="gender", classes=("female", "male"))
    matrix = confusion_matrix(calibrated(), turned)
    assert matrix == pytest.approx(np.array([[0.75, 0.25], [0.1, 0.9]]))
    # 40 of 100 are women: read as such are 40 * .75 + 60 * .1 = 36
    assert corrected_prevalence([36, 64], matrix) == pytest.approx([0.4, 0.6])


def test_intervals_hold_the_share_and_narrow_with_more_images_and_repeat():
    few, many = calibrated(), calibrated([(prompt_id, read, 20 * n) for prompt_id, read, n in READINGS])
    for table in (few, many):
        assert ((table["ci_low"] <= table["share"]) & (table["share"] <= table["ci_high"])).all()
        assert ((table["ci_low"] >= 0) & (table["ci_high"] <= 1)).all()
    width = [(table["ci_high"] - table["ci_low"])[0] for table in (few, many)]
    assert width[1] < width[0]
    pd.testing.assert_frame_equal(few, calibrated())
    assert not few.equals(calibrated(config=EvaluationConfig(n_bootstrap=500, seed=1)))


def test_what_never_happened_in_a_few_images_is_not_ruled_out():
    """None of 20 men was read as a woman: the 95% limit of 3 / n would be .15; Jeffreys' of one prompt is .12."""
    table = calibrated([("m1", "male", 10), ("m2", "male", 10), ("f1", "female", 10), ("f2", "female", 10)])
    row = table[(table["true_class"] == "male") & (table["read_class"] == "female")].iloc[0]
    assert (row["n"], row["share"], row["ci_low"]) == (0, 0.0, 0.0)
    assert 0.08 < row["ci_high"] < 0.2


def test_intervals_cover_the_truth():
    """60 simulated calibrations, 12 prompts x 10 images of each class, P(read male | male) = .85."""
    generator = np.random.default_rng(0)
    parents = [f"n{i}" for i in range(12)]
    prompts = prompts_table(
        *((f"{kind}{i}", "specific", parent, {"gender": name})
          for i, parent in enumerate(parents) for kind, name in (("m", "male"), ("f", "female")))
    )  # fmt: skip
    covered = 0
    for _ in range(60):
        right = generator.binomial(10, 0.85, 12)
        readings = [(f"m{i}", name, n) for i, k in enumerate(right) for name, n in (("male", k), ("female", 10 - k))]
        images, attributes = tables([*readings, *((f"f{i}", "female", 10) for i in range(12))])
        table = calibrate(asked_classes(prompts, images, [GENDER]), attributes, [GENDER], CONFIG)
        row = table[(table["true_class"] == "male") & (table["read_class"] == "male")].iloc[0]
        covered += row["ci_low"] <= 0.85 <= row["ci_high"]
    assert covered >= 56


def test_a_single_prompt_has_no_interval():
    table = calibrated([("m1", "male", 9), ("m1", "female", 1), ("f1", "female", 5), ("f2", "female", 5)])
    assert table.loc[table["true_class"] == "male", "ci_low"].isna().all()
    assert table.loc[table["true_class"] == "female", "ci_low"].notna().all()


def test_a_class_that_was_never_read_is_named():
    table = calibrated([("m1", "male", 3), ("f1", None, 3)])
    shares = table.set_index(["true_class", "read_class"])["share"]
    assert np.isnan(shares["female", "male"])
    assert shares["female", ""] == 1.0
    with pytest.raises(InputError, match=r"no image of \['female'\] on the axis 'gender' was read"):
        confusion_matrix(table, GENDER)
    with pytest.raises(InputError, match=r"has not all classes \('white', 'black'\) of the axis 'race'"):
        confusion_matrix(table, RACE)


def test_people_label_any_image_by_majority():
    images, attributes = tables([("n1", "male", 2), ("n2", "female", 1), ("m1", "male", 1)])
    said = [("i0", "male"), ("i0", "male"), ("i0", "female"), ("i1", "female"), ("i2", "male"), ("i2", "female")]
    labels = pd.DataFrame([(i, "gender", name) for i, name in said], columns=["image_id", "axis", "class"])
    truth = said_classes(labels, PROMPTS, images, [GENDER])
    # i2 is a tie, i3 has no label
    assert truth.values.tolist() == [["i0", "n1", "gender", "male"], ["i1", "n1", "gender", "female"]]
    table = calibrate(truth, attributes, [GENDER], CONFIG)
    assert confusion_matrix(table, GENDER).tolist() == [[1, 0], [1, 0]]


def test_what_does_not_fit_is_named():
    images, attributes = tables(READINGS)
    truth = asked_classes(PROMPTS, images, [GENDER])
    with pytest.raises(InputError, match=r"of 21 labels 1 are of images that were not read \(first: i0\)"):
        calibrate(truth, attributes[1:], [GENDER], CONFIG)
    with pytest.raises(InputError, match="of 0 labels"):
        calibrate(truth[:0], attributes, [GENDER], CONFIG)
    with pytest.raises(InputError, match=r"from 2 classifiers, \['c@1', 'd@1'\]; calibrate one"):
        calibrate(truth, attributes.assign(classifier=["c@1", *["d@1"] * (len(attributes) - 1)]), [GENDER], CONFIG)
    with pytest.raises(InputError, match=r"labels \[\('gender', 'female'\)\] are not among the classes"):
        asked_classes(PROMPTS, images, [Axis(name="gender", classes=("male", "woman"))])
