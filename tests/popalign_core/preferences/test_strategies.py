"""The ways to make sets, on the same images: balanced, the paper's, in pairs, by a judged chain; joint or marginal."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from set_worlds import AXES, CELLS, GENDER, RACE, WHITE_MEN, World, members, prompts, reasons, set_discrepancy, usual

from popalign_core.config import Axis, PreferencesConfig
from popalign_core.errors import InputError
from popalign_core.preferences.set_pairs import build_sets
from popalign_core.preferences.set_selection import draw_to_target
from popalign_core.preferences.target import Target


def config(strategy, **more):
    return PreferencesConfig(**({"set_size": 6, "n_sets": 2, "strategy": strategy} | more))


def skewed(n_women=2):
    """Verified images of which few are women's, against white men."""
    supply = {cell: 12 if cell[0] == "male" else n_women for cell in CELLS}
    return World(prompts("doctor")).specific("doctor", supply).neutral("doctor", {("male", "white"): 12})


@pytest.mark.parametrize("strategy", ["balanced", "paper", "pairwise", "mcmc"])
def test_every_strategy_is_seeded_and_takes_each_image_once(strategy):
    preferences, _ = skewed().build(config(strategy))
    again, _ = skewed().build(config(strategy))
    other, _ = skewed().build(config(strategy, seed=1))
    pd.testing.assert_frame_equal(preferences, again)
    assert preferences["image_id"].is_unique
    assert set(preferences["image_id"]) != set(other["image_id"])


def test_the_papers_sets_are_as_balanced_as_the_pool_they_are_drawn_from():
    """36 men, 6 women: a random six are five men or so; the quota makes three women of them."""
    world = skewed()
    women = {}
    for strategy in ("paper", "balanced"):
        sets = [
            image_ids
            for seed in range(20)
            for image_ids in members(world.build(config(strategy, n_sets=1, seed=seed))[0], "preferred")
        ]
        women[strategy] = np.mean([[world.cells()[name][0] == "female" for name in ids] for ids in sets])
    assert women["balanced"] == 0.5
    assert women["paper"] == pytest.approx(6 / 42, abs=0.07)


def test_the_papers_rule_never_prefers_neutral_images():
    """Pitfalls 5 and 15: when the neutral images are nearer, public code swaps the labels; here there is no pair."""
    men = dict.fromkeys(CELLS, 0) | {("male", "white"): 12}
    world = World(prompts("doctor", "poet")).specific("doctor", men).neutral("doctor", dict.fromkeys(CELLS, 2))
    world.specific("poet", 6).neutral("poet", WHITE_MEN)
    preferences, drops = world.build(config("paper"))
    assert preferences["prompt_id"].nunique() == 1
    assert reasons(drops)["set_pair/not_nearer_the_target"] == 2
    kinds = world.table.set_index("prompt_id")["kind"]
    prompt_of = {image_id: prompt_id for image_id, prompt_id, _ in world.rows}
    assert Counter(zip(preferences["role"], preferences["image_id"].map(prompt_of).map(kinds), strict=True)) == {
        ("preferred", "specific"): 12,
        ("dispreferred", "neutral"): 12,
    }


def test_as_many_distinct_classes_are_not_as_good():
    """Pitfall 5: public code calls a set better with as many distinct classes; five men and a woman have two."""
    axes = (GENDER,)
    world = World(prompts("doctor", axes=axes), axes).specific("doctor", {("male",): 5, ("female",): 1})
    world.neutral("doctor", {("male",): 3, ("female",): 3})
    with pytest.raises(InputError, match="'set_pair/not_nearer_the_target': 1"):
        world.build(config("paper", n_sets=1))


def test_prompts_are_judged_one_by_one():
    """Pitfall 2: 19 in 20 men and 19 in 20 women pool to a fair half; each is judged alone."""
    axes = (GENDER,)
    world = World(prompts("engineer", "nurse", axes=axes), axes)
    for subject, most, least in (("engineer", "male", "female"), ("nurse", "female", "male")):
        world.specific(subject, 10).neutral(subject, {(most,): 19, (least,): 1})
    preferences, drops = world.build(PreferencesConfig(set_size=20))
    worst = preferences[preferences["role"] == "dispreferred"].groupby("prompt_id")["discrepancy"].first()
    # (.95, .05) against halves: sqrt(2 * .45^2)
    assert worst.tolist() == pytest.approx([0.6364, 0.6364], abs=1e-4)
    assert reasons(drops) == {}


def test_a_class_inside_another_ones_name_is_another_class():
    """Pitfall 3: "male" is in "female"; a man where a woman was asked for contradicts, and the other way round."""
    world = World(prompts("doctor", axes=(GENDER,)), (GENDER,)).specific("doctor", 6).neutral("doctor", {("male",): 12})
    children = world.table[world.table["kind"] == "specific"]
    for prompt_id, identity in zip(children["prompt_id"], children["identity"], strict=True):
        world.add(prompt_id, ("male" if dict(identity)["gender"] == "female" else "female",), 2)
    preferences, drops = world.build(PreferencesConfig(set_size=12))
    assert reasons(drops) == {"specific_image/contradicts_gender": 4}
    shown = Counter(world.cells()[name] for name in members(preferences, "preferred")[0])
    assert shown == {("male",): 6, ("female",): 6}


def test_pairs_are_the_balanced_sets_taken_apart():
    world = usual()
    sets, drops = world.build(PreferencesConfig(set_size=12, n_sets=2))
    pairs, drops_of_pairs = world.build(PreferencesConfig(set_size=12, n_sets=2, strategy="pairwise"))
    assert set(zip(pairs["image_id"], pairs["role"], strict=True)) == set(
        zip(sets["image_id"], sets["role"], strict=True)
    )
    assert reasons(drops) == reasons(drops_of_pairs)
    assert pairs.groupby("set_id")["role"].apply(sorted).tolist() == [["dispreferred", "preferred"]] * 24
    assert set(pairs["slot"]) == {0}
    # one image is as far from the target as a set of one: one image says nothing about a population
    one = set_discrepancy([("male", "white")], AXES)
    assert pairs["discrepancy"].tolist() == pytest.approx([one] * 48)


def test_the_chain_comes_as_near_as_its_steps_allow_and_they_are_counted():
    world = skewed(n_women=6)
    sets = {"n_sets": 1, "set_size": 12}
    one, few, many = (world.build(config("mcmc", mcmc_steps=steps, **sets)) for steps in (1, 8, 2000))
    distances = [
        set_discrepancy([world.cells()[name] for name in members(preferences, "preferred")[0]], AXES)
        for preferences, _ in (one, few, many)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > distances[2]
    assert distances[2] == pytest.approx(0.0, abs=1e-12)
    counted = reasons(few[1])
    assert counted["chain_step/accepted"] + counted["chain_step/undone"] == 8
    done = reasons(many[1])
    assert 0 < done["chain_step/accepted"] < done["chain_step/undone"] < 2000


def test_the_marginals_can_be_met_where_the_joint_cannot():
    """No woman is Asian: the joint quota leaves the axes off, the marginals are met through the other cells."""
    supply = dict.fromkeys(CELLS, 12) | {("female", "asian"): 0, ("male", "black"): 0}
    world = World(prompts("doctor")).specific("doctor", supply).neutral("doctor", {("male", "white"): 12})
    found = {}
    for of in ("joint", "marginal"):
        preferences, _ = world.build(config("balanced", set_size=12, n_sets=1, target_of=of))
        cells = [world.cells()[name] for name in members(preferences, "preferred")[0]]
        found[of] = [sorted(Counter(cell[axis] for cell in cells).values()) for axis in (0, 1)]
    assert found["marginal"] == [[6, 6], [4, 4, 4]]
    assert found["joint"] == [[6, 6], [3, 3, 6]]


def test_a_conditional_minority_is_found_by_swapping():
    """Turn by turn the marginals end in a corner here; the swaps get out of it, as brute force says."""
    axes = (GENDER, RACE)
    target = Target(axes)
    for seed in range(30):
        generator = np.random.default_rng(seed)
        cells = generator.choice(len(CELLS), size=14, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
        (drawn,) = draw_to_target([cells], [(1, 6)], target, "marginal", [np.random.default_rng(seed)])
        supply = np.bincount(cells, minlength=len(CELLS))
        reach = np.stack(np.meshgrid(*(np.arange(min(n, 6) + 1) for n in supply)), axis=-1).reshape(-1, len(CELLS))
        best = target.discrepancies(reach[reach.sum(axis=1) == 6]).min()
        found = float(target.discrepancies(target.count(cells[drawn]))[0])
        assert found == pytest.approx(best, abs=1e-9)


def test_any_axes_and_any_target_may_be_asked_for():
    axes = (
        Axis(name="age", classes=("young", "middle", "old"), target={"young": 0.5, "middle": 0.25, "old": 0.25}),
        Axis(name="hair", classes=("dark", "fair")),
        GENDER,
    )
    world = World(prompts("doctor", axes=axes), axes).specific("doctor", 4)
    world.neutral("doctor", {("young", "dark", "male"): 16})
    preferences, _ = world.build(PreferencesConfig(set_size=16))
    counts = Counter(world.cells()[name] for name in members(preferences, "preferred")[0])
    assert {cell: n for cell, n in counts.items() if cell[0] == "young"} == {
        ("young", hair, gender): 2 for hair in ("dark", "fair") for gender in ("male", "female")
    }
    assert sum(counts.values()) == 16
    assert preferences["discrepancy"][0] == pytest.approx(0.0, abs=1e-12)


def test_an_image_that_is_listed_twice_is_refused():
    world = usual()
    images, attributes = world.tables()
    with pytest.raises(InputError, match=r"1 image\(s\) are listed twice; give each image once"):
        build_sets(world.table, pd.concat([images, images[:1]]), attributes, AXES, config("balanced"))
    with pytest.raises(InputError, match=r"\(image, axis\) pairs are in the attributes twice"):
        build_sets(world.table, images, pd.concat([attributes, attributes[:1]]), AXES, config("balanced"))


def test_a_class_that_the_axis_lacks_is_a_counted_drop():
    world = usual()
    images, attributes = world.tables()
    neutral = world.table.loc[world.table["kind"] == "neutral", "prompt_id"].iloc[0]
    strange = images.loc[images["prompt_id"] == neutral, "image_id"].iloc[0]
    attributes.loc[(attributes["image_id"] == strange) & (attributes["axis"] == "race"), "class"] = "martian"
    preferences, drops = build_sets(world.table, images, attributes, AXES, config("balanced"))
    assert reasons(drops)["neutral_image/unknown_class"] == 1
    assert strange not in set(preferences["image_id"])


def test_ids_and_prompts_in_other_scripts_are_ids_like_any_other():
    world = World(prompts("врач", "医生 👩‍⚕️")).specific("врач", 6).neutral("врач", WHITE_MEN)
    world.specific("医生 👩‍⚕️", 6).neutral("医生 👩‍⚕️", WHITE_MEN)
    world.rows = [(f"é-{image_id}-医", prompt_id, cell) for image_id, prompt_id, cell in world.rows]
    preferences, _ = world.build(PreferencesConfig(set_size=12))
    assert set(preferences["image_id"]) <= {image_id for image_id, _, _ in world.rows}
    assert preferences["prompt_id"].nunique() == 2


@pytest.mark.parametrize("fields", [{"strategy": "luck"}, {"target_of": "product"}, {"mcmc_steps": 0}])
def test_a_strategy_that_there_is_not_is_refused(fields):
    with pytest.raises(ValidationError):
        PreferencesConfig(**fields)
