"""Near-duplicates: the index finds what comparing all with all would find; who is shown in a subject."""

import random

import pytest

from popalign_core.prompts.similar import SimilarTexts, head, noun, singular


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("firefighter", "fire fighter", True),
        ("fire-fighter", "Firefighters", True),
        ("doctor", "doctors", True),
        ("city councillor", "city councilor", True),
        ("theatre director", "theater director", True),
        ("archaeologist", "archeologist", True),
        ("colour consultant", "color consultant", True),
        ("advisor", "adviser", True),
        ("organiser", "organizer", True),
        ("sommelière", "sommeliere", True),
        ("music teacher", "teacher of music", True),
        ("person riding a horse on a beach", "person riding a horse on the beach", True),
        ("chef in a big busy kitchen", "chef in a busy kitchen", True),  # 4 of 5 words
        ("chef in a busy kitchen", "chef in a busy bakery", False),  # 3 of 5
        ("software engineer", "software developer", False),
        ("neurologist", "urologist", False),
        ("biologist", "geologist", False),
        ("nurse", "head nurse", False),
        ("worker 11", "worker 1", False),
        ("", "", False),
        ("the", "a", False),
    ],
)
def test_what_is_alike(one: str, other: str, alike: bool) -> None:
    assert SimilarTexts([one]).find(other) == (one if alike else None)
    assert SimilarTexts([other]).find(one) == (other if alike else None)


def test_the_index_finds_exactly_what_comparing_with_each_one_finds() -> None:
    rng = random.Random(0)
    vocabulary = [f"{a}{b}" for a in "bdfgklmnp" for b in ("ank", "olt", "umb")]
    texts = [" ".join(rng.sample(vocabulary[: rng.choice((9, 27))], rng.randint(1, 7))) for _ in range(240)]
    everything, found = SimilarTexts(texts[:120]), 0
    for text in texts[120:]:
        expected = next((other for other in texts[:120] if SimilarTexts([other]).find(text) is not None), None)
        answer = everything.find(text)
        assert (answer is None) == (expected is None)
        assert answer is None or SimilarTexts([answer]).find(text) == answer
        found += expected is not None
    assert 12 < found < 108


@pytest.mark.parametrize(
    ("subject", "shown", "compared"),
    [
        ("a botanist cataloging plant species in a dense forest", "botanist", "botanist"),
        ("Biochemist examining cells in a lab", "biochemist", "biochemist"),
        ("nurse in a ward", "nurse", "nurse"),
        ("head of sales", "head of sales", "head of sales"),
        ("film editing supervisor", "film editing supervisor", "film editing supervisor"),
        ("person riding a horse", "person", "person riding a horse"),
        ("couple on a beach", "couple", "couple on a beach"),
        (", smiling", ", smiling", ", smiling"),
    ],
)
def test_who_is_shown_and_what_subjects_are_compared_by(subject: str, shown: str, compared: str) -> None:
    assert noun(subject) == shown
    assert head(subject) == compared


@pytest.mark.parametrize(
    ("plural", "single"),
    [
        ("actresses", "actress"), ("ladies", "lady"), ("policemen", "policeman"), ("housewives", "housewife"),
        ("children", "child"), ("coaches", "coach"), ("bakers", "baker"), ("boss", "boss"), ("walrus", "walrus"),
        ("analysis", "analysis"), ("gas", "ga"), ("is", "is"),
    ],
)  # fmt: skip
def test_singular(plural: str, single: str) -> None:
    assert singular(plural) == single
