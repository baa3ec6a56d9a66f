"""Prompt checks: empty, duplicates (pitfall 13), leakage, identity words (pitfall 3), whole subjects (pitfall 7)."""

import pytest

from popalign_core.config import Axis, PromptsConfig
from popalign_core.errors import InputError
from popalign_core.identities.augment import augment_prompts
from popalign_core.prompts.checks import canonical, check_prompts, identity_words_in, subject_fault
from popalign_core.prompts.grammar import write_prompts

GENDER = Axis(name="gender", classes=("male", "female"))
RACE = Axis(name="race", classes=("white", "black", "middle eastern", "latino hispanic"), words={"white": "caucasian"})
AXES = (GENDER, RACE)


def prompts(train=("doctor",), evaluation=("engineer",), generic=("tree",), carrier="a photo of {}"):
    return write_prompts(
        PromptsConfig(train_subjects=train, eval_subjects=evaluation, generic_subjects=generic, carrier=carrier)
    )


def test_good_prompts_pass_before_and_after_augmentation():
    table = prompts()
    check_prompts(table, AXES)
    check_prompts(augment_prompts(table, AXES, "a photo of {}"), AXES)


def test_an_empty_list_is_refused():
    with pytest.raises(InputError, match=r"the prompt list is empty \(0 prompts\); give prompts\.train_subjects"):
        check_prompts(prompts((), (), ()), AXES)


def test_an_empty_subject_is_refused():
    with pytest.raises(InputError, match=r"1 prompt\(s\) have an empty text or subject"):
        check_prompts(prompts(("doctor", " ")), AXES)


def test_duplicates_are_found_whatever_their_case_and_spacing():
    with pytest.raises(
        InputError, match=r"1 duplicate prompt\(s\), e\.g\. 'a photo of a Doctor'; keep each prompt once"
    ):
        check_prompts(prompts(("doctor", " Doctor")), AXES)


def test_one_duplicate_among_three_hundred_is_found():
    subjects = tuple(f"worker {i}" for i in range(299))
    with pytest.raises(InputError, match="1 duplicate"):
        check_prompts(prompts((*subjects, "worker 7")), AXES)


def test_a_subject_in_both_splits_is_refused_and_a_part_of_a_word_is_not():
    with pytest.raises(InputError, match=r"1 subject\(s\) are in both the training and the evaluation split: 'nurse'"):
        check_prompts(_renamed(prompts(("doctor", "nurse"), ("head nurse",))), AXES)
    check_prompts(prompts(("ethnobotanist",), ("botanist",)), AXES)


def _renamed(table):
    """The evaluation prompt reads differently but is about the same subject."""
    table.loc[table["split"].eq("eval") & table["kind"].eq("neutral"), "subject"] = "Nurse"
    return table


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("waitress", ["waitress"]),
        ("doctor with his dog", ["his"]),
        ("male nurse", ["male"]),
        ("FEMALE pilot", ["female"]),
        ("caucasian chef", ["caucasian"]),
        ("white doctor", ["white"]),
        ("middle-eastern cook", ["middle eastern"]),
        ("fireman", ["fireman"]),
        ("saleswomen", ["saleswomen"]),
        ("black woman judge", ["black", "woman"]),
    ],
)
def test_identity_words_are_named(subject, words):
    assert sorted(identity_words_in(subject, AXES)) == sorted(words)
    with pytest.raises(InputError, match=r"1 neutral prompt\(s\) already name an identity: .*" + words[0]):
        check_prompts(prompts((subject,)), AXES)


@pytest.mark.parametrize(
    "subject",
    [
        "blacksmith", "whitewater rafter", "human resources manager", "shaman", "middle manager", "histologist",
        "sheriff", "hematologist", "specimen collector", "mandolin player", "bus driver", "nurse", "butcher",
        "German teacher", "midwife",
    ],
)  # fmt: skip
def test_whole_words_only(subject):
    assert identity_words_in(subject, AXES) == []


def test_male_is_not_in_female():
    only_male = (Axis(name="x", classes=("male", "other")),)
    assert identity_words_in("female doctor", only_male) == ["female"]
    assert identity_words_in("emale doctor, malevolent", only_male) == []


def test_a_carrier_that_names_an_identity_spoils_every_prompt():
    with pytest.raises(InputError, match=r"2 neutral prompt\(s\) already name an identity"):
        check_prompts(prompts(carrier="a photo of {} and his tools"), AXES)


def test_generic_prompts_may_use_the_words():
    check_prompts(prompts(generic=("black cat", "white board")), AXES)


@pytest.mark.parametrize(
    ("subject", "fault"),
    [
        ("violin maker", None),
        ("children's book author", None),
        ("family doctor", None),
        ("police officer", None),
        ("head of sales", None),
        ("tennis coach", None),
        ("chess boss", None),
        ("actress", "names_identity"),
        ("middle eastern cook", "names_identity"),
        ("two dancers", "several_people"),
        ("team of surgeons", "several_people"),
        ("teachers", "several_people"),
        ("chef and waiter", "several_people"),
        ("someone who repairs very old grandfather clocks", "too_long"),
        ("doctor #2", "not_plain_words"),
        ("doctor\nnurse", "not_plain_words"),
        ("Doctor", "duplicate"),
        ("Engineer", "held_out"),
        ("ethnobotanist", None),
    ],
)
def test_subject_faults(subject, fault):
    assert subject_fault(subject, AXES, {"doctor"}, {"engineer", "botanist"}) == fault


def test_canonical_folds_case_and_spacing():
    assert canonical("  A  Photo\tof ") == "a photo of"
