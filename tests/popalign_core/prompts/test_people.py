"""Who is shown decides whether a prompt shows several people: 200 scenes, and the kinds they are of."""

import csv
from pathlib import Path

import pytest

from popalign_core.config.axes import DEEPFACE_RACE, GENDER
from popalign_core.prompts.people import shows_several
from popalign_core.prompts.sifting import Sieve
from popalign_core.prompts.words import word_groups, word_list


def scenes(name: str) -> list[tuple[str, bool]]:
    with (Path(__file__).parent / name).open(encoding="utf-8", newline="") as file:
        return [(row["scene"], row["several_people"] == "yes") for row in csv.DictReader(file)]


def test_of_200_scenes_those_of_one_person_are_kept_and_those_of_several_are_not() -> None:
    """They were written before the rule."""
    written = scenes("scenes.csv")
    one, several = ([scene for scene, is_several in written if is_several == which] for which in (False, True))
    assert (len(one), len(several)) == (160, 40)
    sieve = Sieve((GENDER, DEEPFACE_RACE))
    kept = set(sieve.subjects([("scenes", [scene for scene, _ in written])]))
    assert len(kept & {scene.removesuffix(".") for scene in one}) >= 0.97 * 160
    assert kept & {scene.removesuffix(".") for scene in several} == set()
    assert {reason for text, reason in sieve.rejected if text in several} == {"several_people"}


def test_scenes_written_after_the_rule_are_told_apart_too() -> None:
    """Three times 60; the rule had 55, 56 and 53 of them right before it was mended by what they showed."""
    written = scenes("more_scenes.csv")
    wrong = [scene for scene, is_several in written if shows_several(scene) != is_several]
    assert len(written) == 180
    assert len(wrong) <= 5, wrong


@pytest.mark.parametrize(
    "scene",
    [
        "surveyor - measuring plots with instruments, beside a river",
        "nurse with patient records and two charts",
        "clerk sorting customer orders at a desk",
        "author of children's books",
        "designer: sketching a team logo",
        "a genealogist drawing family trees",
        "a pilot in the cockpit of a passenger plane",
        "astronomer photographing a group of galaxies",
        "tailor sewing suits for clients",
        "historian reading letters from soldiers",
        "painter restoring a portrait of a family",
        "clerk mailing parcels to customers",
        "stage hand sweeping before the audience arrives",
        "toymaker painting wooden soldiers",
        "agent on the phone with a client",
        "a taxidermist brushes the feathers of owls",
        "nurse checks charts and tubes",
        "hair and makeup artist",
        "food and beverage manager",
        "a person's hands holding a mug",
        "engineer testing data models on four screens",
    ],
)
def test_one_person_whatever_else_there_is_many_of(scene: str) -> None:
    assert not shows_several(scene)


@pytest.mark.parametrize(
    "scene",
    [
        "teachers",
        "Two chefs - chopping onions",
        "3 dancers on a stage",
        "a pair of climbers",
        "a chef and a waiter",
        "chef and waiter",
        "a film crew setting up lights",
        "teacher explaining fractions to students",
        "nurse taking a patient's pulse",
        "masseur kneading the shoulders of a client",
        "speaker before a packed audience",
        "officer surrounded by recruits",
        "waiter pouring wine for guests",
        "photographer taking pictures of newlyweds",
        "photographer directing a model on a set",
        "ranger guiding a tour through a canyon",
        "vendor in a crowded market",
        "volunteer feeding the homeless in a shelter",
        "guide with a group of visitors",
        "coach talking to a pole vaulter",
        "porter helping a guest lift a trunk",
        "children's hands",
    ],
)
def test_somebody_else_who_is_there_counts(scene: str) -> None:
    assert shows_several(scene)


def test_the_words_of_scenes_are_words() -> None:
    for words in (word_list("people"), word_list("body"), word_list("traces"), *word_groups("scenes").values()):
        assert words
        assert [word for word in words if not word.replace(" ", "").replace("-", "").isalpha()] == []
