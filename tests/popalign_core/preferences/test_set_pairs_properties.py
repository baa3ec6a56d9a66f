"""What holds of preference sets whatever the images: drops add up, no image twice, nothing farther than the paper's."""

from collections import Counter
from itertools import product

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from set_worlds import GENDER, RACE, World, prompts, reasons, set_discrepancy

from popalign_core.config import PreferencesConfig
from popalign_core.errors import InputError
from popalign_core.preferences.set_pairs import iter_sets, tabulate_set_drops
from popalign_core.preferences.set_selection import draw_at_random, draw_to_target
from popalign_core.preferences.target import Target

AXES_TO_TRY = ((GENDER,), (RACE,), (GENDER.model_copy(update={"target": {"male": 0.3, "female": 0.7}}), RACE))
TABLES = [(axes, prompts("botanist", "ethnobotanist", axes=axes)) for axes in AXES_TO_TRY]

thorough = settings(
    max_examples=15,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
counts = st.integers(min_value=0, max_value=5)


@st.composite
def worlds(draw):
    """Obedient, contradicting and faceless images of two prompts, one's name inside the other's."""
    axes, table = draw(st.sampled_from(TABLES))
    world, cells = World(table, axes), list(product(*(axis.classes for axis in axes)))
    for subject in ("botanist", "ethnobotanist"):
        world.specific(subject, {cell: draw(counts) for cell in cells})
        world.neutral(subject, {cell: draw(counts) for cell in [*cells, None]})
    children = world.table.loc[world.table["kind"] == "specific", "prompt_id"].tolist()
    for child in draw(st.lists(st.sampled_from(children), max_size=4)):
        world.add(child, draw(st.sampled_from([*cells, None])), 1)
    # ids of which one is inside another: a, aa, aaa, ... and 1, 11, 111, ...
    world.rows = [("a1"[number % 2] * (number // 2 + 1), *row[1:]) for number, row in enumerate(world.rows)]
    return world


configs = st.builds(
    PreferencesConfig,
    set_size=st.integers(1, 7),
    n_sets=st.integers(1, 3),
    seed=st.integers(0, 99),
    strategy=st.sampled_from(["balanced", "paper", "pairwise", "mcmc"]),
    target_of=st.sampled_from(["joint", "marginal"]),
    mcmc_steps=st.just(20),
)


def build(world, config):
    try:
        return world.build(config)
    except InputError as error:
        assume("no preference pair can be built" not in str(error))
        raise


@thorough
@given(worlds(), configs)
def test_drops_add_up_and_no_image_has_two_roles(world, config):
    preferences, drops = build(world, config)
    assert preferences["image_id"].is_unique
    kind_of = world.table.set_index("prompt_id")["kind"]
    given_images = Counter(kind_of[prompt_id] for _, prompt_id, _ in world.rows)
    for kind, role in (("specific", "preferred"), ("neutral", "dispreferred")):
        dropped = sum(n for reason, n in reasons(drops).items() if reason.startswith(f"{kind}_image/"))
        assert dropped + (preferences["role"] == role).sum() == given_images[kind]


@thorough
@given(worlds(), configs)
def test_members_are_of_their_prompt_verified_and_their_columns_tell_of_their_set(world, config):
    """Pitfalls 3, 5 and 7: joined by ids alone, the prediction agrees, and the statistics are those of the set."""
    preferences, _ = build(world, config)
    prompt_of = {image_id: prompt_id for image_id, prompt_id, _ in world.rows}
    rows = world.table.set_index("prompt_id").loc[[prompt_of[name] for name in preferences["image_id"]]]
    is_preferred = (preferences["role"] == "preferred").to_numpy()
    assert (rows["kind"] == np.where(is_preferred, "specific", "neutral")).all()
    parents = np.where(is_preferred, rows["parent_id"], rows.index)
    assert parents.tolist() == preferences["prompt_id"].tolist()
    cells = world.cells()
    for image_id, identity in zip(preferences["image_id"][is_preferred], rows["identity"][is_preferred], strict=True):
        assert cells[image_id] == tuple(dict(identity).values())
    worst = Target(world.axes).largest_discrepancy()
    for _, members in preferences.groupby(["set_id", "role"]):
        distance = set_discrepancy([cells[name] for name in members["image_id"]], world.axes)
        assert np.allclose(members["discrepancy"], distance, atol=1e-12)
        assert np.allclose(members["balance"], 1 - distance / worst, atol=1e-12)
        assert members["slot"].tolist() == list(range(len(members)))
    sizes = preferences.groupby(["set_id", "role"]).size().unstack()
    assert (sizes["preferred"] == sizes["dispreferred"]).all()


@thorough
@given(worlds(), configs, st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_the_cut_into_pieces_matters(world, config, random):
    preferences, drops = build(world, config)
    images, attributes = world.tables()
    order = random.sample(range(len(images)), len(images))
    cut = random.randrange(len(images))
    pieces, counted = [], Counter()
    for part in (order[:cut], order[cut:]):
        of_part = attributes[attributes["image_id"].isin(images["image_id"].iloc[part])]
        shuffled = of_part.iloc[random.sample(range(len(of_part)), len(of_part))]
        pieces.append((images.iloc[part], shuffled))
    again = pd.concat(iter_sets(world.table, pieces, world.axes, config, counted), ignore_index=True)
    pd.testing.assert_frame_equal(preferences, again)
    pd.testing.assert_frame_equal(drops, tabulate_set_drops(counted))


@st.composite
def draws(draw):
    """Cells of the images of one prompt, and a shape that they suffice for."""
    target = Target(draw(st.sampled_from(AXES_TO_TRY)))
    cells = draw(st.lists(st.integers(0, len(target.cells) - 1), min_size=1, max_size=40))
    n_sets = draw(st.integers(1, min(4, len(cells))))
    return target, np.array(cells), (n_sets, draw(st.integers(1, len(cells) // n_sets)))


@settings(thorough, max_examples=100)
@given(draws(), st.sampled_from(["joint", "marginal"]), st.integers(0, 99))
def test_sets_are_never_farther_from_the_target_than_the_papers_on_the_same_images(drawn, of, seed):
    target, cells, shape = drawn
    (ours,) = draw_to_target([cells], [shape], target, of, [np.random.default_rng(seed)])
    papers = draw_at_random(len(cells), shape, np.random.default_rng(seed))
    assert len(set(ours.ravel().tolist())) == ours.size == papers.size
    distance = {
        name: target.distances(target.count(cells[sets]), of) for name, sets in (("ours", ours), ("paper", papers))
    }
    if of == "joint":  # the sum of squares is what the quota makes small
        distance = {name: each**2 for name, each in distance.items()}
    assert distance["ours"].sum() <= distance["paper"].sum() + 1e-9


@thorough
@given(worlds(), configs, st.integers(0, 9))
def test_one_set_a_prompt_is_never_farther_than_the_papers_in_the_column(world, config, seed):
    fields = {"n_sets": 1, "target_of": "marginal", "seed": seed}
    tables = {
        name: build(world, config.model_copy(update=fields | {"strategy": name}))[0] for name in ("balanced", "paper")
    }
    ours, papers = (
        table[table["role"] == "preferred"].groupby("prompt_id")["discrepancy"].first() for table in tables.values()
    )
    both = ours.index.intersection(papers.index)  # the neutral images drawn differ, and with them which pairs are kept
    assert (ours[both] <= papers[both] + 1e-9).all()


@thorough
@given(worlds(), configs)
def test_a_pair_of_sets_is_a_preference(world, config):
    assume(config.strategy != "pairwise")
    preferences, _ = build(world, config)
    sets = preferences.groupby(["set_id", "role"])["discrepancy"].first().unstack()
    assert (sets["preferred"] < sets["dispreferred"]).all()
