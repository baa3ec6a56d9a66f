"""The offline grammar: rows, ids, articles."""

import pytest

from popalign_core.config import PromptsConfig
from popalign_core.ids import content_id
from popalign_core.prompts.grammar import PROMPT_COLUMNS, fill, with_article, without_determiner, write_prompts

CONFIG = PromptsConfig(train_subjects=("doctor",), eval_subjects=("engineer",), generic_subjects=("apple", "the moon"))


def test_rows_come_in_the_order_of_the_configuration():
    prompts = write_prompts(CONFIG)
    assert tuple(prompts.columns) == PROMPT_COLUMNS
    assert prompts[["text", "subject", "kind", "split"]].to_numpy().tolist() == [
        ["a photo of a doctor", "doctor", "neutral", "train"],
        ["a photo of an engineer", "engineer", "neutral", "eval"],
        ["a photo of an apple", "apple", "generic", "eval"],
        ["a photo of the moon", "the moon", "generic", "eval"],
    ]
    assert prompts["identity"].tolist() == [{}, {}, {}, {}]
    assert prompts["parent_id"].tolist() == [None] * 4
    assert set(prompts["template"]) == {"a photo of {}"}
    assert set(prompts["source"]) == {"grammar"}


def test_the_id_depends_on_content_and_not_on_position():
    prompts = write_prompts(CONFIG)
    assert prompts["prompt_id"][1] == content_id("prompt", "a photo of an engineer", "neutral", "eval")
    alone = write_prompts(PromptsConfig(eval_subjects=("engineer",)))
    assert alone["prompt_id"].tolist() == [prompts["prompt_id"][1]]


def test_no_subjects_give_an_empty_table_with_all_columns():
    assert tuple(write_prompts(PromptsConfig()).columns) == PROMPT_COLUMNS
    assert len(write_prompts(PromptsConfig())) == 0


@pytest.mark.parametrize(
    "phrase",
    [
        "a doctor", "an engineer", "an hourly worker", "an heir", "an honest broker", "a unicyclist",
        "a university teacher", "an umpire", "an undertaker", "a urologist", "an usher", "a user researcher",
        "a one-wheel rider", "an onion seller", "a European", "an MRI technician", "a UX designer", "an HR clerk",
        "a DJ", "an X-ray technician", "a yoga teacher", "an Asian doctor", "a black female doctor", "an old nurse",
        "a house", "a helicopter pilot", "an uninvited guest",
    ],
)  # fmt: skip
def test_the_article_follows_the_sound(phrase):
    bare = phrase.split(" ", 1)[1]
    assert with_article(bare) == phrase


def test_a_determiner_of_its_own_stays_and_can_be_taken_off():
    assert fill("{}, portrait", "the mayor") == "the mayor, portrait"
    assert [without_determiner(phrase) for phrase in ("the  old mayor", "A nurse", "theologian", "an")] == [
        "old mayor", "nurse", "theologian", "an",
    ]  # fmt: skip


def test_braces_in_a_subject_or_carrier_are_left_alone():
    assert fill("{x} {}", "ball {0}") == "{x} a ball {0}"
