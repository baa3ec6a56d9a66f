import numpy as np
import pandas as pd
import pytest

from popalign_core.config import Axis, EvaluationConfig
from popalign_core.evaluation.agreement import agreement_rows
from popalign_core.evaluation.metrics import COLUMNS

GENDER = Axis(name="gender", classes=("male", "female"))
CONFIG = EvaluationConfig()
NAMES = [f"p{number}" for number in range(5)]
PROMPTS = pd.DataFrame({"prompt_id": NAMES, "text": NAMES, "kind": "neutral", "identity": [{}] * 5, "parent_id": None})
# Of every prompt's 10 images both say male of 4 and female of 3, one alone says male of 2, the other of 1.
PAIRS = [("male", "male")] * 4 + [("female", "female")] * 3 + [("male", "female")] * 2 + [("female", "male")]


def _attributes(images: pd.DataFrame, classes: list[str | None], classifier: str) -> pd.DataFrame:
    reasons = [None if name else "unsure" for name in classes]
    facts = {"axis": "gender", "class": classes * 5, "drop_reason": reasons * 5, "classifier": classifier}
    return pd.DataFrame({"image_id": images["image_id"], **facts})


def tables(pairs: list[tuple[str | None, str | None]]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    rows = [(f"{p}-{i}", p, i, i) for p in NAMES for i in range(len(pairs))]
    images = pd.DataFrame(rows, columns=["image_id", "prompt_id", "index", "seed"])
    first, second = (_attributes(images, [pair[side] for pair in pairs], "ab"[side] + "@1") for side in (0, 1))
    return images, first, second


def test_images_of_nobody_have_no_agreement() -> None:
    images, first, second = tables(PAIRS)
    objects = PROMPTS.assign(kind="generic")
    assert agreement_rows("base", objects, images, first.iloc[:0], second.iloc[:0], (GENDER,), CONFIG).empty


def test_agreement_and_kappa_by_hand() -> None:
    table = agreement_rows("base", PROMPTS, *tables(PAIRS), (GENDER,), CONFIG)
    assert tuple(table.columns) == COLUMNS
    assert set(table["scorer"]) == {"a@1|b@1"}
    agreement, kappa = (table[table["metric"] == name].iloc[0] for name in ("agreement", "kappa"))
    assert (agreement["value"], agreement["n"]) == (0.7, 50)
    # by chance .6 x .5 + .4 x .5 = .5
    assert kappa["value"] == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert kappa["ci_low"] <= kappa["value"] <= kappa["ci_high"]
    assert agreement["ci_low"] < 0.7 < agreement["ci_high"]


def test_images_that_one_did_not_read_take_no_part() -> None:
    table = agreement_rows("base", PROMPTS, *tables([*PAIRS, ("male", None)]), (GENDER,), CONFIG)
    assert table["n"].tolist() == [50, 50]


def test_no_kappa_where_there_is_one_class() -> None:
    table = agreement_rows("base", PROMPTS, *tables([("male", "male")] * 4), (GENDER,), CONFIG).set_index("metric")
    assert table.loc["agreement", "value"] == 1.0
    assert np.isnan(table.loc["kappa", "value"])
    assert table.loc["kappa", "note"] == "not measured: both read one class only"
    none = agreement_rows("base", PROMPTS, *tables([("male", None)] * 4), (GENDER,), CONFIG)
    assert set(none["note"]) == {"not measured: no image was read by both"}
    assert none["n"].tolist() == [0, 0]
