"""Identity augmentation: identities in columns (pitfall 3), one carrier for parent and child (pitfall 6)."""

from collections import Counter

import pytest

from popalign_core.config import Axis, PromptsConfig
from popalign_core.errors import InputError
from popalign_core.identities.augment import augment_prompts, identity_phrase
from popalign_core.ids import content_id
from popalign_core.prompts.grammar import fill, with_carriers, write_prompts

GENDER = Axis(name="gender", classes=("male", "female"))
RACE = Axis(name="race", classes=("black", "asian", "latino hispanic"), words={"latino hispanic": "latino"})
AGE = Axis(name="age", classes=("young", "old"))
PROMPTS = write_prompts(
    PromptsConfig(train_subjects=("doctor",), eval_subjects=("engineer",), generic_subjects=("cat",))
)


def test_every_cell_of_the_product_gets_one_child_of_each_neutral_prompt():
    table = augment_prompts(PROMPTS, (GENDER, RACE))
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
    table = augment_prompts(PROMPTS, (GENDER, RACE))
    assert table["prompt_id"].is_unique
    assert table["prompt_id"][3] == content_id("prompt", "a photo of a black male doctor", "specific", "train")


def test_three_axes_keep_the_order_with_the_first_axis_next_to_the_noun():
    carrier = "{}, studio light"
    prompts = write_prompts(PromptsConfig(train_subjects=("engineer",), carrier=carrier))
    table = augment_prompts(prompts, (GENDER, RACE, AGE))
    assert len(table) == 1 + 12
    assert table["text"].iloc[-1] == "an old latino female engineer, studio light"
    assert list(table["identity"].iloc[-1]) == ["gender", "race", "age"]


def test_children_have_their_parents_carrier():
    listed = with_carriers(PROMPTS, {"engineer": "A realistic photo of {}, 4k"})
    table = augment_prompts(listed, (GENDER,))
    assert table["text"].tolist()[3:] == [
        "a photo of a male doctor",
        "a photo of a female doctor",
        "A realistic photo of a male engineer, 4k",
        "A realistic photo of a female engineer, 4k",
    ]
    assert table["template"].tolist()[5:] == ["A realistic photo of {}, 4k"] * 2
    assert table["parent_id"].tolist()[5:] == [listed["prompt_id"][1]] * 2


@pytest.mark.parametrize(
    ("subject", "before", "behind"),
    [
        ("Botanist - Cataloging plants, in a forest", "an asian botanist - cataloging plants, in a forest",
         "a botanist who is asian - cataloging plants, in a forest"),
        ("Marine Engineer: Testing GPS units", "an asian marine engineer: testing GPS units",
         "a marine engineer who is asian: testing GPS units"),
        ("An Engineer in a hall", "an asian engineer in a hall", "an engineer who is asian in a hall"),
        ("DJ, at a desk", "an asian DJ, at a desk", "a DJ who is asian, at a desk"),
        ("3D Artist", "an asian 3D artist", "a 3D artist who is asian"),
        ("French Horn Player", "an asian French horn player", "a French horn player who is asian"),
        ("person who is kind", "an asian person who is kind", "a person who is kind who is asian"),
    ],
)  # fmt: skip
def test_an_identity_stands_with_who_is_shown(subject, before, behind):
    race = Axis(name="race", classes=("asian", "black"))
    assert fill("{}", identity_phrase(subject, (race,), ("asian",))) == before
    described = race.model_copy(update={"phrase": "{subject} who is {word}"})
    assert fill("{}", identity_phrase(subject, (described,), ("asian",))) == behind


def test_cells_that_read_the_same_are_refused():
    same = Axis(name="race", classes=("a", "b"), words={"a": "asian", "b": "asian"})
    with pytest.raises(InputError, match=r"\('b',\) gives 'a photo of an asian doctor' a second time"):
        augment_prompts(PROMPTS, (same,))
    silent = Axis(name="race", classes=("a", "b"), words={"a": ""})
    with pytest.raises(InputError, match=r"\('a',\) gives 'a photo of a doctor' a second time"):
        augment_prompts(PROMPTS, (silent,))


def test_no_axis_is_refused():
    with pytest.raises(InputError, match="no axis to augment"):
        augment_prompts(PROMPTS, ())


NURSE = write_prompts(PromptsConfig(train_subjects=("nurse",)))
WORDS = {"black": "Black", "asian": "Asian"}


@pytest.mark.parametrize(
    ("phrases", "texts"),
    [
        ((None, None), ["a Black male nurse", "an Asian male nurse", "a Black female nurse", "an Asian female nurse"]),
        (
            (None, "{subject} who is {word}"),
            ["a male nurse who is Black", "a male nurse who is Asian", "a female nurse who is Black",
             "a female nurse who is Asian"],
        ),
        (
            ("{subject} ({word})", None),
            ["a Black nurse (male)", "an Asian nurse (male)", "a Black nurse (female)", "an Asian nurse (female)"],
        ),
        (
            ("{word}-presenting {subject}", "{subject} of {word} descent"),
            ["a male-presenting nurse of Black descent", "a male-presenting nurse of Asian descent",
             "a female-presenting nurse of Black descent", "a female-presenting nurse of Asian descent"],
        ),
    ],
)  # fmt: skip
def test_each_axis_may_say_where_its_words_stand(phrases, texts):
    plain = (
        Axis(name="gender", classes=("male", "female")),
        Axis(name="race", classes=("black", "asian"), words=WORDS),
    )
    axes = [
        axis if phrase is None else axis.model_copy(update={"phrase": phrase})
        for axis, phrase in zip(plain, phrases, strict=True)
    ]
    children = augment_prompts(NURSE, axes).iloc[1:]
    assert children["text"].tolist() == [f"a photo of {text}" for text in texts]
    assert children["identity"].tolist()[1] == {"gender": "male", "race": "asian"}
    assert Counter(tuple(identity.values()) for identity in children["identity"]) == {
        ("male", "black"): 1, ("male", "asian"): 1, ("female", "black"): 1, ("female", "asian"): 1,
    }  # fmt: skip


def test_an_identity_takes_the_place_of_a_subjects_article_and_braces_mean_nothing():
    axes = (Axis(name="mood", classes=("{subject}", "calm"), phrase="{word}, {subject}"),)
    prompts = write_prompts(PromptsConfig(train_subjects=("the {word} mayor",)))
    assert augment_prompts(prompts, axes)["text"].tolist() == [
        "a photo of the {word} mayor",
        "a photo of a {subject}, {word} mayor",
        "a photo of a calm, {word} mayor",
    ]


def test_a_class_without_words_leaves_the_rest_of_the_identity():
    axes = (GENDER, Axis(name="sight", classes=("none", "glasses"), words={"none": ""}, phrase="{subject} with {word}"))
    assert augment_prompts(NURSE, axes)["text"].tolist()[1:] == [
        "a photo of a male nurse",
        "a photo of a male nurse with glasses",
        "a photo of a female nurse",
        "a photo of a female nurse with glasses",
    ]


@pytest.mark.parametrize("phrase", ["{subject}", "{word}", "{word} {word} {subject}", "", "{subject} {subject} {word}"])
def test_a_phrase_says_each_once(phrase):
    with pytest.raises(ValueError, match=r"axis 'age': phrase .* needs \{word\} and \{subject\}, each once"):
        Axis(name="age", classes=("young", "old"), phrase=phrase)


def test_the_usual_phrase_leaves_keys_as_they_were():
    assert set(GENDER.model_dump()) == {"name", "classes", "words", "target"}
    other = GENDER.model_copy(update={"phrase": "{subject} ({word})"})
    assert other.model_dump()["phrase"] == "{subject} ({word})"
    assert Axis.model_validate(other.model_dump()) == other


def test_couples_are_described_like_anybody():
    axes = (
        Axis(
            name="couple",
            classes=("woman and man", "two women"),
            words={"woman and man": "heterosexual", "two women": "lesbian"},
        ),
    )
    prompts = write_prompts(PromptsConfig(eval_subjects=("couple on a beach",)))
    assert augment_prompts(prompts, axes)["text"].tolist() == [
        "a photo of a couple on a beach",
        "a photo of a heterosexual couple on a beach",
        "a photo of a lesbian couple on a beach",
    ]
