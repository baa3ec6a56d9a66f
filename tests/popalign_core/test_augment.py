"""Identity augmentation: identities in columns (pitfall 3), one carrier for parent and child (pitfall 6)."""

from collections import Counter

import pytest

from popalign_core.config import Axis, PromptsConfig
from popalign_core.errors import InputError
from popalign_core.identities.augment import augment_prompts
from popalign_core.ids import content_id
from popalign_core.prompts.grammar import write_prompts

GENDER = Axis(name="gender", classes=("male", "female"))
RACE = Axis(name="race", classes=("black", "asian", "latino hispanic"), words={"latino hispanic": "latino"})
AGE = Axis(name="age", classes=("young", "old"))
PROMPTS = write_prompts(
    PromptsConfig(train_subjects=("doctor",), eval_subjects=("engineer",), generic_subjects=("cat",))
)


def test_every_cell_of_the_product_gets_one_child_of_each_neutral_prompt():
    table = augment_prompts(PROMPTS, (GENDER, RACE), "a photo of {}")
    assert len(table) == 3 + 2 * 6
    assert table.iloc[:3].equals(PROMPTS)
    children = table.iloc[3:]
    assert children["text"].tolist()[:6] == [
        "a photo of a black male doctor",
        "a photo of an asian male doctor",
        "a photo of a latino male doctor",
        "a photo of a black female doctor",
        "a photo of an asian female doctor",
        "a photo of a latino female doctor",
    ]
    assert children["identity"].tolist()[2] == {"gender": "male", "race": "latino hispanic"}
    assert set(children["kind"]) == {"specific"}
    assert Counter(children["split"]) == {"train": 6, "eval": 6}
    assert children["parent_id"].tolist() == [PROMPTS["prompt_id"][0]] * 6 + [PROMPTS["prompt_id"][1]] * 6
    assert children["subject"].tolist() == ["doctor"] * 6 + ["engineer"] * 6
    assert set(children["template"]) == {"a photo of {}"}


def test_ids_are_those_of_the_content_and_unique():
    table = augment_prompts(PROMPTS, (GENDER, RACE), "a photo of {}")
    assert table["prompt_id"].is_unique
    assert table["prompt_id"][3] == content_id("prompt", "a photo of a black male doctor", "specific", "train")


def test_three_axes_keep_the_order_with_the_first_axis_next_to_the_noun():
    carrier = "{}, studio light"
    prompts = write_prompts(PromptsConfig(train_subjects=("engineer",), carrier=carrier))
    table = augment_prompts(prompts, (GENDER, RACE, AGE), carrier)
    assert len(table) == 1 + 12
    assert table["text"].iloc[-1] == "an old latino female engineer, studio light"
    assert list(table["identity"].iloc[-1]) == ["gender", "race", "age"]


def test_another_carrier_is_refused():
    with pytest.raises(
        InputError, match=r"template 'a photo of \{\}', the specific ones would be with 'a realistic photo"
    ):
        augment_prompts(PROMPTS, (GENDER,), "a realistic photo of {}")


def test_cells_that_read_the_same_are_refused():
    same = Axis(name="race", classes=("a", "b"), words={"a": "asian", "b": "asian"})
    with pytest.raises(InputError, match=r"\('b',\) gives 'a photo of an asian doctor' a second time"):
        augment_prompts(PROMPTS, (same,), "a photo of {}")
    silent = Axis(name="race", classes=("a", "b"), words={"a": ""})
    with pytest.raises(InputError, match=r"\('a',\) gives 'a photo of a doctor' a second time"):
        augment_prompts(PROMPTS, (silent,), "a photo of {}")


def test_no_axis_is_refused():
    with pytest.raises(InputError, match="no axis to augment"):
        augment_prompts(PROMPTS, (), "a photo of {}")
