"""Prompt checks: empty, duplicates (pitfall 13), leakage, identity words (pitfall 3), whole subjects (pitfall 7)."""

import pytest

from popalign_core.config import Axis, PromptsConfig
from popalign_core.errors import InputError
from popalign_core.identities.augment import augment_prompts
from popalign_core.prompts.checks import canonical, check_balance, check_prompts, prompt_fault, subject_fault
from popalign_core.prompts.grammar import write_prompts
from popalign_core.prompts.similar import SimilarTexts
from popalign_core.prompts.words import identity_words_in, word_list

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
    check_prompts(augment_prompts(table, AXES), AXES)


def test_an_empty_list_is_refused():
    with pytest.raises(InputError, match=r"the prompt list is empty \(0 prompts\); give prompts\.train_subjects"):
        check_prompts(prompts((), (), ()), AXES)


def test_a_whole_prompt_as_a_subject_is_refused():
    with pytest.raises(
        InputError, match=r"1 neutral subject\(s\) are whole prompts.*: 'a photo of a nurse'; .*prompts\.carrier"
    ):
        check_prompts(prompts(("doctor", "a photo of a nurse")), AXES)


def test_an_empty_subject_is_refused():
    with pytest.raises(InputError, match=r"1 prompt\(s\) have an empty text or subject"):
        check_prompts(prompts(("doctor", " ")), AXES)


def test_duplicates_are_found_whatever_their_case_and_spacing():
    with pytest.raises(
        InputError, match=r"1 duplicate prompt\(s\), e\.g\. 'a photo of a doctor'; keep each prompt once"
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
        ("businesswoman", ["businesswoman"]),
        ("actresses' agent", ["actresses"]),
        ("policemen's coach", ["policemen"]),
        ("housewife", ["housewife"]),
        ("landlady", ["landlady"]),
        ("paperboy", ["paperboy"]),
        ("godmother", ["godmother"]),
        ("bearded baker", ["bearded"]),
        ("surgeon with her patient", ["her"]),
        ("doctor called Maria", ["maria"]),
        ("cook named Chad", ["chad"]),
        ("German teacher", ["german"]),
        ("Polish plumber", ["polish"]),
        ("nurse from South Korea", ["korea"]),
        ("native-american potter", ["american", "native american"]),
        ("Buddhist monk", ["buddhist", "monk"]),
        ("caterer to whites", ["white"]),
        ("blondes' hairdresser", ["blondes"]),
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
        "midwife", "boilermaker", "French horn player", "nail polish technician", "china painter", "senior engineer",
        "rose grower", "mason", "craftsmanship teacher", "German shepherd trainer", "groomer", "orthodontist",
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
        ("photo of a doctor", "whole_prompt"),
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
        ("doctors", "several_people"),
        ("doctor of the", "duplicate"),
        ("Botanist in a lab", "held_out"),
        ("nurse with a patient", "several_people"),
        ("医生", "not_plain_words"),
        ("врач", "not_plain_words"),
        ("docteur émérite", None),
        ("nurse 🙂", "not_plain_words"),
        ("x" * 10_000, "too_long"),
        ("nurse " * 2_000, "too_long"),
        ("", "not_plain_words"),
        (", in a hat", "not_plain_words"),
    ],
)
def test_subject_faults(subject, fault):
    assert subject_fault(subject, AXES, SimilarTexts(["doctor"]), SimilarTexts(["engineer", "botanist"])) == fault


@pytest.mark.parametrize(
    ("scene", "fault"),
    [
        ("a botanist cataloging plant species in a dense forest", "held_out"),
        ("a biochemist examining cellular structures, in a high-tech lab", None),
        ("a chef chopping onions and garlic", None),
        ("a chef and a waiter in a kitchen", "several_people"),
        ("a teacher with two pupils", "several_people"),
        ("a group of hikers on a ridge", "several_people"),
        ("a coach training an athlete", "several_people"),
        ("a surgeon washing his hands", "names_identity"),
        ("a person reading on 1 of 3 screens (35 mm)", None),
        (", in a hat", None),
        ("12", "not_plain_words"),
        ("a nurse, 医生", "not_plain_words"),
    ],
)
def test_scenes_may_be_longer_and_are_told_apart_by_who_is_in_them(scene, fault):
    assert subject_fault(scene, AXES, SimilarTexts(), SimilarTexts(["botanist"]), max_words=40) == fault


def test_people_together_are_fine_where_they_are_wanted():
    assert subject_fault("couple on a beach", AXES, SimilarTexts(), SimilarTexts()) == "several_people"
    assert subject_fault("couple on a beach", AXES, SimilarTexts(), SimilarTexts(), one_person=False) is None


def test_an_axis_brings_its_own_word_list():
    age = (Axis(name="age", classes=("twenties", "sixties")),)
    assert identity_words_in("elderly teenage boxer", age) == ["elderly", "teenage"]
    assert identity_words_in("30-year-old boxer", age) == ["old", "year old"]
    assert identity_words_in("elderly teenage boxer", (GENDER,)) == []


def test_a_capital_counts_only_where_it_says_something():
    assert identity_words_in("Nail Polish Technician", AXES) == []
    assert identity_words_in("Polish nail technician", AXES) == ["polish"]
    assert identity_words_in("Chinese Chef", AXES) == ["chinese"]


@pytest.mark.parametrize(
    "name", ["gender", "names", "origin", "religion", "age", "harmless", "not_gendered", "capitals"]
)
def test_the_word_lists_are_words(name):
    words = word_list(name)
    assert len(words) > 15
    assert [word for word in words if not all(part.isalpha() for part in word.split())] == []


def test_near_duplicates_are_refused_and_kin_is_not():
    with pytest.raises(
        InputError, match=r"2 neutral subject\(s\) say the same as another: 'fire fighter ~ firefighter'"
    ):
        check_prompts(prompts(("firefighter", "fire fighter", "music teacher", "teacher of music")), AXES)
    check_prompts(prompts(("software engineer", "software developer", "biologist", "geologist")), AXES)


@pytest.mark.parametrize(
    ("trained", "evaluated", "leaks"),
    [
        ("firefighter", "fire fighter", True),
        ("doctors", "doctor", True),
        ("jeweller", "jeweler", True),
        ("a botanist cataloging plant species in a forest", "botanist", True),
        ("nurse", "nurse in a ward", True),
        ("software engineer", "software developer", False),
        ("botanist", "ethnobotanist", False),
        ("nurse", "head nurse", False),
        ("person riding a horse", "person riding a camel", False),
        ("film editing supervisor", "film casting director", False),
    ],
)
def test_leakage_is_of_who_is_shown_however_it_is_spelled(trained, evaluated, leaks):
    table = prompts((trained,), (evaluated,))
    if leaks:
        with pytest.raises(InputError, match=r"1 subject\(s\) are in both the training and the evaluation split: '"):
            check_prompts(table, AXES)
    else:
        check_prompts(table, AXES)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a blue cube on a red sphere", None),
        ("A red cube  on a blue sphere", "duplicate"),
        ("一只猫 🐈, 4k", None),
        (" ", "empty"),
        ("ein Hund\x07", "unprintable"),
        ("Ã¤\ufffd", "unprintable"),
        ("word " * 2_000, "too_long"),
    ],
)
def test_prompts_that_are_used_as_they_are(text, fault):
    assert prompt_fault(text, {"a red cube on a blue sphere"}) == fault


def test_a_theme_with_three_times_as_many_is_out_of_balance():
    check_balance(["law"] * 2 + ["food"] * 4, "mine")
    with pytest.raises(InputError, match=r"in mine theme 'food' has 6 prompts and 'law' has 2, over 2 times as many"):
        check_balance(["law"] * 2 + ["food"] * 6, "mine")


def test_canonical_folds_case_and_spacing():
    assert canonical("  A  Photo\tof ") == "a photo of"
