"""Preference sets: quota to the target, no replacement (pitfall 5), seeded (8), joined on ids (7), roles kept (15)."""

from collections import Counter
from itertools import product

import numpy as np
import pandas as pd
import pytest
from set_worlds import (
    AXES,
    CELLS,
    CONFIG,
    GENDER,
    RACE,
    WHITE_MEN,
    World,
    members,
    prompts,
    reasons,
    set_discrepancy,
    usual,
)

from popalign_core.config import Axis, PreferencesConfig
from popalign_core.errors import InputError
from popalign_core.preferences.set_pairs import build_sets


def test_a_prompt_with_images_enough_gets_balanced_sets_against_its_own():
    world = usual()
    preferences, drops = world.build()
    assert list(preferences.columns) == [
        "set_id", "prompt_id", "role", "image_id", "slot", "target", "discrepancy", "balance",
    ]  # fmt: skip
    cells = world.cells()
    for image_ids in members(preferences, "preferred"):
        assert Counter(cells[name] for name in image_ids) == dict.fromkeys(CELLS, 2)
    assert [len(ids) for ids in members(preferences, "dispreferred")] == [12, 12]
    # gender (1, 0) against (1/2, 1/2): sqrt(1/2); race (1, 0, 0) against thirds: sqrt(4/9 + 2/9)
    worst = (np.sqrt(1 / 2) + np.sqrt(6 / 9)) / 2
    by_role = preferences.groupby("role")[["discrepancy", "balance"]].first()
    assert by_role.loc["preferred"].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)
    assert by_role.loc["dispreferred"].tolist() == pytest.approx([worst, 0.0], abs=1e-12)
    assert preferences["target"][0] == pytest.approx(
        {"gender=male": 1 / 2, "gender=female": 1 / 2, "race=white": 1 / 3, "race=black": 1 / 3, "race=asian": 1 / 3}
    )
    assert preferences["slot"].dtype == np.int32
    assert preferences.groupby(["set_id", "role"])["slot"].apply(list).tolist() == [list(range(12))] * 4
    assert reasons(drops) == {"specific_image/unused": 12}


def test_preferred_images_are_specific_and_dispreferred_ones_neutral():
    world = usual()
    preferences, _ = world.build()
    images, _ = world.tables()
    kind = world.table.set_index("prompt_id")["kind"]
    prompt_of = images.set_index("image_id")["prompt_id"]
    kinds = preferences["image_id"].map(prompt_of).map(kind)
    assert Counter(zip(preferences["role"], kinds, strict=True)) == {
        ("preferred", "specific"): 24,
        ("dispreferred", "neutral"): 24,
    }
    neutral_id = world.table["prompt_id"][world.table["kind"] == "neutral"].iloc[0]
    assert set(preferences["prompt_id"]) == {neutral_id}
    assert preferences.groupby("set_id")["role"].nunique().tolist() == [2, 2]


def test_no_image_is_drawn_twice():
    preferences, _ = usual().build()
    assert preferences["image_id"].is_unique


def test_the_draw_is_the_same_whatever_the_order_of_the_rows():
    world = usual()
    images, attributes = world.tables()
    first, _ = build_sets(world.table, images, attributes, AXES, CONFIG)
    second, _ = build_sets(world.table, images[::-1], attributes.sample(frac=1, random_state=0), AXES, CONFIG)
    pd.testing.assert_frame_equal(first, second)


def test_another_seed_draws_other_images_and_other_prompts_do_not_matter():
    alone, _ = usual().build()
    other_seed, _ = usual().build(CONFIG.model_copy(update={"seed": 1}))
    assert set(alone["image_id"]) != set(other_seed["image_id"])
    table = prompts("nurse", "doctor")
    world = World(table).specific("doctor", 6).neutral("doctor", WHITE_MEN)
    world.specific("nurse", 6).neutral("nurse", {("female", "white"): 24})
    both, _ = world.build()
    pd.testing.assert_frame_equal(both[both["prompt_id"].isin(alone["prompt_id"])].reset_index(drop=True), alone)


def test_the_quota_follows_a_target_that_is_not_uniform():
    axes = (GENDER.model_copy(update={"target": {"male": 0.25, "female": 0.75}}), RACE)
    world = World(prompts("doctor", axes=axes), axes).specific("doctor", 12).neutral("doctor", WHITE_MEN)
    preferences, _ = world.build(PreferencesConfig(set_size=12, n_sets=1))
    cells = world.cells()
    (image_ids,) = members(preferences, "preferred")
    counts = Counter(cells[name] for name in image_ids)
    assert [counts[cell] for cell in CELLS] == [1, 1, 1, 3, 3, 3]


def test_the_largest_remainders_get_the_odd_images():
    axes = (Axis(name="race", classes=("p", "q", "r"), target={"p": 0.5, "q": 0.3, "r": 0.2}),)
    world = World(prompts("doctor", axes=axes), axes).specific("doctor", 20).neutral("doctor", {("p",): 20})
    preferences, _ = world.build(PreferencesConfig(set_size=7, n_sets=1))
    # quotas 3.5, 2.1, 1.4: floors 3, 2, 1, and the odd one to the largest remainder, .5
    counts = Counter(world.cells()[name] for name in members(preferences, "preferred")[0])
    assert counts == {("p",): 4, ("q",): 2, ("r",): 1}


@pytest.mark.parametrize("seed", range(5))
def test_ties_keep_the_axes_balanced_and_do_not_favour_a_cell(seed):
    world = usual()
    preferences, _ = world.build(PreferencesConfig(set_size=10, n_sets=2, seed=seed))
    for image_ids in members(preferences, "preferred"):
        cells = [world.cells()[name] for name in image_ids]
        assert Counter(gender for gender, _ in cells) == {"male": 5, "female": 5}
        assert sorted(Counter(race for _, race in cells).values()) == [3, 3, 4]


def test_the_odd_images_change_from_set_to_set():
    table = prompts(*(f"{name} maker" for name in ("bow", "cup", "dye", "fan", "hat", "ink", "jam", "kit")))
    world = World(table)
    for subject in table["subject"].unique():
        world.specific(subject, 6).neutral(subject, WHITE_MEN)
    preferences, _ = world.build(PreferencesConfig(set_size=7, n_sets=1))
    extra = Counter(
        next(cell for cell, n in Counter(world.cells()[name] for name in image_ids).items() if n == 2)
        for image_ids in members(preferences, "preferred")
    )
    assert max(extra.values()) < 8


def test_a_scarce_cell_is_made_up_for_as_near_as_images_allow_and_shared():
    supply = dict.fromkeys(CELLS, 6) | {("female", "asian"): 2}
    world = World(prompts("doctor")).specific("doctor", supply).neutral("doctor", WHITE_MEN)
    preferences, _ = world.build()
    for image_ids in members(preferences, "preferred"):
        counts = Counter(world.cells()[name] for name in image_ids)
        assert counts[("female", "asian")] == 1
        assert sorted(counts.values()) == [1, 2, 2, 2, 2, 3]
        # the thirteenth share goes where the axes lack: to an asian man or a woman
        assert counts[("male", "white")] == counts[("male", "black")] == 2


@pytest.mark.parametrize("seed", range(20))
def test_the_greedy_quota_is_the_nearest_joint_by_brute_force(seed):
    generator = np.random.default_rng(seed)
    axes = (Axis(name="x", classes=("p", "q", "r"), target=_random_target(generator)),)
    supply = {(name,): int(n) for name, n in zip("pqr", generator.integers(1, 7, 3), strict=True)}
    size = int(generator.integers(2, min(6, sum(supply.values())) + 1))
    farthest = min("pqr", key=axes[0].target.get)
    world = World(prompts("doctor", axes=axes), axes).specific("doctor", supply).neutral("doctor", {(farthest,): 9})
    preferences, _ = world.build(PreferencesConfig(set_size=size, n_sets=1))
    best = min(
        set_discrepancy([(name,) for name, n in zip("pqr", counts, strict=True) for _ in range(n)], axes)
        for counts in product(*(range(supply[(name,)] + 1) for name in "pqr"))
        if sum(counts) == size
    )
    assert preferences["discrepancy"][0] == pytest.approx(best, abs=1e-12)


def _random_target(generator):
    shares = generator.integers(1, 10, 3)
    return dict(zip("pqr", (float(share) / float(shares.sum()) for share in shares), strict=True))


def test_contradicting_and_faceless_images_are_counted_and_never_used():
    world = usual()
    child = world.table[world.table["text"] == "a photo of a black female doctor"].iloc[0]["prompt_id"]
    world.add(child, ("male", "black"), 3).add(child, ("female", "white"), 2).add(child, None, 1)
    world.neutral("doctor", {None: 5})
    preferences, drops = world.build()
    bad = {name for name, prompt_id, cell in world.rows if prompt_id == child and cell != ("female", "black")}
    assert not bad & set(preferences["image_id"])
    assert reasons(drops) == {
        "neutral_image/no_face": 5,
        "specific_image/contradicts_gender": 3,
        "specific_image/contradicts_race": 2,
        "specific_image/no_face": 1,
        "specific_image/unused": 12,
    }
    in_images = sum(n for reason, n in reasons(drops).items() if "_image/" in reason)
    assert in_images + len(preferences) == len(world.rows)


def test_sets_shrink_to_half_before_they_are_given_up():
    def shapes(n_neutral):
        world = World(prompts("doctor", "poet")).specific("doctor", 6).neutral("doctor", {("male", "white"): n_neutral})
        world.specific("poet", 6).neutral("poet", WHITE_MEN)  # so that there is always something to publish
        preferences, drops = world.build()
        doctor = world.table[world.table["subject"] == "doctor"]["prompt_id"].iloc[0]
        sizes = [len(ids) for ids in members(preferences[preferences["prompt_id"] == doctor], "dispreferred")]
        return sizes, reasons(drops).get("prompt/too_few_neutral_images", 0)

    assert shapes(24) == ([12, 12], 0)
    assert shapes(23) == ([11, 11], 0)
    assert shapes(12) == ([6, 6], 0)
    assert shapes(11) == ([11], 0)
    assert shapes(6) == ([6], 0)
    assert shapes(5) == ([], 1)
    assert shapes(0) == ([], 1)


def test_too_few_specific_images_are_counted_as_such():
    world = World(prompts("doctor", "poet")).specific("doctor", 0).neutral("doctor", WHITE_MEN)
    _, drops = world.specific("poet", 6).neutral("poet", WHITE_MEN).build()
    assert reasons(drops) == {
        "neutral_image/unused": 24,
        "prompt/too_few_specific_images": 1,
        "specific_image/unused": 12,
    }


def test_a_pair_that_is_no_preference_is_dropped():
    """Pitfall 5: a rule that is always true. Here the neutral images are as balanced as the preferred can be."""
    table = prompts("doctor", "poet")
    world = World(table).specific("doctor", 6).neutral("doctor", dict.fromkeys(CELLS, 2))
    world.specific("poet", 6).neutral("poet", WHITE_MEN)
    preferences, drops = world.build(PreferencesConfig(set_size=12, n_sets=1))
    poet = table[table["subject"] == "poet"]["prompt_id"].iloc[0]
    assert set(preferences["prompt_id"]) == {poet}
    assert reasons(drops)["set_pair/not_nearer_the_target"] == 1
    assert reasons(drops)["neutral_image/unused"] == 12 + 12


def test_every_pair_is_a_preference():
    preferences, _ = usual().build()
    sets = preferences.groupby(["set_id", "role"])["discrepancy"].first().unstack()
    assert (sets["preferred"] < sets["dispreferred"]).tolist() == [True, True]


def test_subjects_inside_each_other_do_not_mix():
    """Pitfall 7: "botanist" is inside "ethnobotanist"."""
    table = prompts("botanist", "ethnobotanist")
    world = World(table).specific("botanist", 6).neutral("botanist", WHITE_MEN)
    world.specific("ethnobotanist", 6).neutral("ethnobotanist", WHITE_MEN)
    preferences, _ = world.build()
    subject_of = table.set_index("prompt_id")["subject"]
    images, _ = world.tables()
    prompt_of = images.set_index("image_id")["prompt_id"]
    captions = preferences["prompt_id"].map(subject_of).tolist()
    assert captions == preferences["image_id"].map(prompt_of).map(subject_of).tolist()


def test_evaluation_prompts_never_enter():
    table = prompts("doctor", evaluation=("nurse",))
    world = World(table).specific("doctor", 6).neutral("doctor", WHITE_MEN)
    world.specific("nurse", 6).neutral("nurse", WHITE_MEN)
    preferences, _ = world.build()
    assert set(preferences["prompt_id"]) == {table["prompt_id"][0]}


def test_the_set_id_is_that_of_its_images():
    first, _ = usual().build()
    world = usual()
    again, _ = world.build()
    assert first["set_id"].tolist() == again["set_id"].tolist()
    assert first["set_id"].nunique() == 2
    assert set(first["set_id"].str.len()) == {16}


def test_nothing_to_build_from_is_an_error_with_its_reasons():
    world = World(prompts("doctor")).specific("doctor", 6).neutral("doctor", {None: 24})
    with pytest.raises(InputError, match=r"no preference pair can be built .*'neutral_image/no_face': 24"):
        world.build()


def test_images_that_were_not_read_are_refused():
    world = usual()
    images, attributes = world.tables()
    with pytest.raises(InputError, match="has no attributes"):
        build_sets(world.table, images, attributes[attributes["image_id"] != images["image_id"].iloc[-1]], AXES, CONFIG)
