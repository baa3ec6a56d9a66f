import numpy as np
import pandas as pd
import pytest

from popalign_core.config import Axis
from popalign_core.evaluation.counts import UNREAD
from popalign_core.evaluation.recall import hits, recall_measures

GENDER = Axis(name="gender", classes=("male", "female"))
RACE = Axis(name="race", classes=("white", "black", "asian"))
AXES = (GENDER, RACE)

CELLS = pd.DataFrame(
    [
        # asked gender, asked race, read gender, read race, images
        (1, 1, 1, 1, 6),  # a black woman as asked
        (1, 1, 0, 1, 2),  # a black man instead
        (0, 2, 0, 0, 3),  # a white man for an asian man
        (0, 2, UNREAD, UNREAD, 1),  # no face: a miss
        (0, UNREAD, 0, 1, 8),  # "a male doctor": race was not asked
        (1, 1, UNREAD, 1, 0),  # a face of unsure gender
    ],
    columns=["asked:gender", "asked:race", "read:gender", "read:race", "images"],
).assign(face=[True, True, True, False, True, True])


def test_recall_by_hand() -> None:
    counts = CELLS["images"].to_numpy(dtype=float)[None, None, :]
    measures = recall_measures(counts, CELLS, AXES)
    found = {(m.metric, m.axis): (m.value, m.n) for m in measures if m.n and m.metric.startswith("recall")}
    assert found == {
        ("recall", "gender"): (pytest.approx((6 + 3 + 8) / 20), 20),
        ("recall", "race"): (pytest.approx((6 + 2) / 12), 12),
        ("recall", "all"): (pytest.approx((6 + 8) / 20), 20),
        ("recall:male", "gender"): (pytest.approx(11 / 12), 12),
        ("recall:female", "gender"): (pytest.approx(6 / 8), 8),
        ("recall:black", "race"): (1.0, 8),
        ("recall:asian", "race"): (0.0, 4),
        ("recall:male+asian", "all"): (0.0, 4),
        ("recall:female+black", "all"): (6 / 8, 8),
    }
    assert {m.metric: m.why for m in measures if not m.n and m.metric.startswith("recall")} == {
        f"recall:{name}": f"not measured: no prompt asks for {name}"
        for name in ("white", "male+white", "male+black", "female+white", "female+asian")
    }


def test_male_inside_female_is_no_hit() -> None:
    labels = pd.DataFrame({"asked:gender": [1], "read:gender": [0]})
    assert not hits(labels, (GENDER,))["gender", "hit"].iloc[0]


def test_joint_recall_is_at_most_each() -> None:
    found = hits(CELLS, AXES)
    both_asked = (CELLS["asked:race"] != UNREAD).to_numpy()
    joint = found["all", "hit"].to_numpy()[both_asked]
    np.testing.assert_array_equal(joint, (found["gender", "hit"] & found["race", "hit"]).to_numpy()[both_asked])


def test_misses_are_told_apart() -> None:
    cells = CELLS.assign(images=[6, 2, 3, 1, 8, 4])
    counts = cells["images"].to_numpy(dtype=float)[None, None, :]
    found = {(m.metric, m.axis): m.value for m in recall_measures(counts, cells, AXES)}
    assert found["other_class_share:female", "gender"] == pytest.approx(2 / 12)
    assert found["unsure_share:female", "gender"] == pytest.approx(4 / 12)
    assert found["no_face_share:female", "gender"] == 0.0
    assert found["no_face_share:male", "gender"] == pytest.approx(1 / 12)
    assert found["no_face_gap", "gender"] == pytest.approx(1 / 12)
    assert found["unsure_gap", "gender"] == pytest.approx(4 / 12)
    assert found["other_class_share", "race"] == pytest.approx(3 / 16)
    assert np.isnan(found["unsure_share:white", "race"])
    for name in ("male", "female"):
        parts = ("recall", "no_face_share", "unsure_share", "other_class_share")
        assert sum(found[f"{part}:{name}", "gender"] for part in parts) == pytest.approx(1.0)


def test_what_is_read_off_the_whole_picture_needs_no_face() -> None:
    hat = Axis(name="gender", classes=("male", "female"), of="picture")
    counts = CELLS["images"].to_numpy(dtype=float)[None, None, :]
    found = {m.metric: m.value for m in recall_measures(counts, CELLS, (hat,))}
    assert not [name for name in found if name.startswith("no_face")]
    assert found["unsure_share:male"] == pytest.approx(1 / 12)
