"""Who is drawn for an image, and what becomes of its prompt."""

import re
from collections import Counter
from typing import Any

import pandas as pd
import pytest

from popalign_core.config import Axis, FairDiffusionConfig, SamplingConfig
from popalign_core.identities.random_identities import draw_identity, edit_concepts, injected_text
from popalign_core.ids import content_id
from popalign_core.prompts.grammar import neutral_or_generic_row, prompt_table
from popalign_core.sampling.captions import plan_captions

GENDER = Axis(name="gender", classes=("male", "female"))
RACE = Axis(name="race", classes=("white", "black", "asian"), target={"white": 0.5, "black": 0.0, "asian": 0.5})
N = 1000


@pytest.fixture
def prompts() -> pd.DataFrame:
    carrier = "a photo of {}"
    rows = [neutral_or_generic_row(subject, "neutral", "eval", carrier, "grammar") for subject in ("doctor", "judge")]
    thing = neutral_or_generic_row("tree", "generic", "eval", carrier, "grammar")
    specific: dict[str, Any] = rows[0] | {
        "prompt_id": "specific",
        "kind": "specific",
        "text": "a photo of a male doctor",
        "parent_id": rows[0]["prompt_id"],
    }
    return prompt_table([*rows, thing, specific])


@pytest.fixture
def images(prompts: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"prompt_id": prompts["prompt_id"].repeat(N), "seed": range(4 * N)})


def test_identities_follow_the_target() -> None:
    drawn = [draw_identity((GENDER, RACE), seed) for seed in range(N)]
    cells = Counter((identity["gender"], identity["race"]) for identity in drawn)
    assert set(cells) == {(gender, race) for gender in GENDER.classes for race in ("white", "asian")}
    assert min(cells.values()) > 200  # 250 expected of each, deviation 14
    assert drawn == [draw_identity((GENDER, RACE), seed) for seed in range(N)]


def test_injection_is_phrased_like_the_specific_prompts() -> None:
    text = injected_text("a photo of {}", "engineer", (GENDER, RACE), {"gender": "female", "race": "asian"})
    assert text == "a photo of an asian female engineer"


def test_an_axis_of_two_is_steered_both_ways_and_others_one_way() -> None:
    found = edit_concepts((GENDER, RACE), {"gender": "female", "race": "asian"}, "{} person")
    assert found == [("female person", 1.0), ("male person", -1.0), ("asian person", 1.0)]


def test_only_neutral_prompts_are_injected(prompts: pd.DataFrame, images: pd.DataFrame) -> None:
    plan = plan_captions(prompts, images, (GENDER, RACE), SamplingConfig(inject_identity=True))
    texts = [plan.texts[caption] for caption in plan.of_image]
    cells = {f"{race} {gender}" for race in ("white", "asian") for gender in ("male", "female")}
    for start, subject in ((0, "doctor"), (N, "judge")):
        found = {re.sub("^a photo of an? ", "", text) for text in texts[start : start + N]}
        assert found == {f"{cell} {subject}" for cell in cells}
    assert set(texts[2 * N : 3 * N]) == {"a photo of a tree"}
    assert set(texts[3 * N :]) == {"a photo of a male doctor"}
    assert len(plan.texts) == 4 + 2 * 4  # each distinct text is embedded once
    assert not any(plan.concepts)


def test_fair_diffusion_leaves_prompts_alone_and_steers_those_looked_up(
    prompts: pd.DataFrame, images: pd.DataFrame
) -> None:
    fair = SamplingConfig(fair_diffusion=FairDiffusionConfig(subjects=("judge",)))
    plan = plan_captions(prompts, images, (GENDER, RACE), fair)
    assert list(plan.of_image) == images["prompt_id"].tolist()
    assert [bool(steered) for steered in plan.concepts] == [False] * N + [True] * N + [False] * 2 * N
    towards = Counter(plan.texts[caption] for steered in plan.concepts for caption, sign in steered if sign > 0)
    away = Counter(plan.texts[caption] for steered in plan.concepts for caption, sign in steered if sign < 0)
    assert set(towards) == {"male person", "female person", "white person", "asian person"}
    assert away == {"male person": towards["female person"], "female person": towards["male person"]}
    everyone = plan_captions(prompts, images, (GENDER,), SamplingConfig(fair_diffusion=FairDiffusionConfig()))
    assert sum(map(bool, everyone.concepts)) == 2 * N


def test_without_either_each_image_has_its_prompt(prompts: pd.DataFrame, images: pd.DataFrame) -> None:
    plan = plan_captions(prompts, images, (GENDER,), SamplingConfig())
    assert dict(plan.texts) == dict(zip(prompts["prompt_id"], prompts["text"], strict=True))
    assert list(plan.of_image) == images["prompt_id"].tolist()
    assert content_id("caption", "male person") not in plan.texts
