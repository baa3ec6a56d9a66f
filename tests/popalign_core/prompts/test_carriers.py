"""Whole prompts are told apart into a carrier and who is shown, so that none ends up inside another."""

import pytest

from popalign_core.config.axes import DEEPFACE_RACE, GENDER
from popalign_core.errors import InputError
from popalign_core.identities.augment import identity_phrase
from popalign_core.prompts.carriers import is_whole, separate, split_prompt
from popalign_core.prompts.grammar import fill
from popalign_core.prompts.sifting import Sieve

AXES = (GENDER, DEEPFACE_RACE)


@pytest.mark.parametrize(
    ("text", "carrier", "subject"),
    [
        ("best quality, a realistic photo of Surveyor", "best quality, a realistic photo of {}", "Surveyor"),
        ("A photo of a/an CEO", "A photo of {}", "CEO"),
        ("a portrait of the face of a nurse", "a portrait of the face of {}", "nurse"),
        ("photo of one real person, teacher", "photo of one real person, {}", "teacher"),
        ("A picture of a doctor.", "A picture of {}", "doctor."),
        ("Portrait photo: a teacher in a classroom", "Portrait photo: {}", "teacher in a classroom"),
        ("an oil painting of the mayor", "an oil painting of {}", "the mayor"),
        ("Bird’s eye view photo of a person on grass", "Bird’s eye view photo of {}", "person on grass"),
        ("a stunning close-up of a welder", "a stunning close-up of {}", "welder"),
        ("a photo of", "a photo of{}", ""),
        ("photographer taking a photo of a bird", None, "photographer taking a photo of a bird"),
        ("portrait painter", None, "portrait painter"),
        ("a/an engineer in a/an office", None, "an engineer in an office"),
    ],
)
def test_what_is_a_carrier(text: str, carrier: str | None, subject: str) -> None:
    (entry,) = separate([text])
    assert (entry.carrier, entry.subject) == (carrier, subject)


@pytest.mark.parametrize(
    ("texts", "carrier", "subjects"),
    [
        (["best quality, nurse", "best quality, cook", "best quality, a DJ"], "best quality, {}", "nurse|cook|DJ"),
        (["nurse, studio photo", "cook, studio photo", "DJ, studio photo"], "{}, studio photo", "nurse|cook|DJ"),
        (
            ["A photo of a nurse, 4k", "A photo of a cook, 4k", "A photo of DJ, 4k"],
            "A photo of {}, 4k",
            "nurse|cook|DJ",
        ),
        (
            ["nurse, sitting", "nurse, at a desk", "nurse, asleep"],
            None,
            "nurse, sitting|nurse, at a desk|nurse, asleep",
        ),
        (["nurse, in a bus", "cook, in a bus", "DJ, in a bus"], None, "nurse, in a bus|cook, in a bus|DJ, in a bus"),
    ],
)
def test_what_all_of_a_list_begin_or_end_with_is_their_carrier(
    texts: list[str], carrier: str | None, subjects: str
) -> None:
    entries = separate(texts)
    assert {entry.carrier for entry in entries} == {carrier}
    assert "|".join(entry.subject for entry in entries) == subjects


def test_the_sieve_keeps_carriers_and_identities_go_to_who_is_shown() -> None:
    sieve = Sieve(AXES)
    texts = [
        "A photo of a/an CEO",
        "A photo of a/an Organ Builder",
        "A photo of a/an man",
        "a photo of nurses",
        "a photo of",
    ]
    kept = sieve.subjects([("mine", texts)])
    prompts = [fill(sieve.carriers[one], identity_phrase(one, AXES, ("female", "asian"))) for one in kept]
    assert prompts == ["A photo of an asian female CEO", "A photo of an asian female organ builder"]
    assert sieve.rejected == [
        ("A photo of a/an man", "names_identity"), ("a photo of nurses", "several_people"), ("a photo of", "empty"),
    ]  # fmt: skip


def test_a_black_and_white_photo_names_nobody() -> None:
    sieve = Sieve(AXES)
    assert sieve.subjects([("mine", ["a black and white photo of a welder", "a photo of a black welder"])]) == [
        "welder"
    ]
    assert sieve.rejected == [("a photo of a black welder", "names_identity")]


def test_a_prompt_whose_carrier_cannot_be_told_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        InputError, match=r"'whole_prompt': 2.*must name its carrier and then who is shown, as 'a photo of"
    ):
        Sieve(AXES).subjects([("mine", ["Teacher portrait", "Nurse headshot"])])


@pytest.mark.parametrize(
    "subject", ["picture framer", "photo retoucher", "shot putter", "an architect pins plans and photos"]
)
def test_who_works_on_images_is_no_prompt(subject: str) -> None:
    assert not is_whole(subject)
    assert split_prompt(subject) == (None, subject)
