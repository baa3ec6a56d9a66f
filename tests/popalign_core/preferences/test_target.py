"""Distances of sets from the target: fixed class lists (pitfall 1), the joint or each axis by itself."""

from itertools import product

import numpy as np
import pytest
from set_worlds import AXES, CELLS, GENDER, RACE, set_discrepancy

from popalign_core.config import Axis
from popalign_core.preferences.target import Target, target_joint


def test_discrepancy_is_taken_over_the_fixed_class_list():
    """Pitfall 1: over the classes observed a single race would score 0."""
    race = (Axis(name="race", classes=("white", "black", "asian", "indian", "middle eastern", "latino hispanic")),)
    assert set_discrepancy([("white",)] * 5, race) == pytest.approx(0.9129, abs=5e-5)
    assert Target(race).largest_discrepancy() == pytest.approx(0.9129, abs=5e-5)
    assert set_discrepancy([(name,) for name in race[0].classes], race) == pytest.approx(0.0, abs=1e-12)


def test_the_target_joint_is_the_product():
    axes = (GENDER.model_copy(update={"target": {"male": 0.25, "female": 0.75}}), RACE)
    joint = target_joint(axes)
    assert joint[("female", "asian")] == pytest.approx(0.25)
    assert sum(joint.values()) == pytest.approx(1.0)


def test_counts_of_many_sets_give_what_each_set_gives():
    target, generator = Target(AXES), np.random.default_rng(0)
    sets = generator.integers(len(CELLS), size=(3, 4, 7))
    each = [[set_discrepancy([CELLS[cell] for cell in row], AXES) for row in rows] for rows in sets]
    np.testing.assert_allclose(target.discrepancies(target.count(sets)), each, atol=1e-15)


def test_the_joint_sees_what_the_marginals_do_not():
    """White men and black women: each axis is at its target, the product is not."""
    axes = (GENDER, Axis(name="race", classes=("white", "black")))
    target = Target(axes)
    counts = target.count(np.array([target.cells.index(cell) for cell in (("male", "white"), ("female", "black"))]))
    assert target.distances(counts, "marginal") == pytest.approx(0.0, abs=1e-12)
    # shares (1/2, 0, 0, 1/2) against quarters
    assert target.distances(counts, "joint") == pytest.approx(0.5)


@pytest.mark.parametrize("of", ["joint", "marginal"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
def test_the_nearest_set_of_a_size_is_that_of_brute_force(n, of):
    axes = (GENDER.model_copy(update={"target": {"male": 0.3, "female": 0.7}}), RACE)
    target = Target(axes)
    counts = np.array([row for row in product(range(n + 1), repeat=len(target.cells)) if sum(row) == n])
    assert target.nearest(n, of) == pytest.approx(float(target.distances(counts, of).min()), abs=1e-12)
