"""Advantages by hand, their expectation at the target by enumeration, and log-ratios to the nearest wanted model."""

import math
from itertools import product

import numpy as np
import pytest

from popalign_core.config import Axis, PopulationConfig
from popalign_core.training.population import (
    FloatArray,
    IntArray,
    advantages_by_prompt,
    describe_round,
    leave_one_out_advantages,
    log_ratio_advantages,
    log_ratios_by_prompt,
    nearest_shares,
    population_advantages,
    target_log_ratios,
)

HALF = np.array([0.5, 0.5])


def cells(*numbers: int) -> IntArray:
    return np.array(numbers, dtype=np.int64)


def test_leave_one_out_by_hand() -> None:
    """Three of class 0, one of class 1, target one half each.

    Of class 0: the others are (2/3, 1/3), minus target (1/6, -1/6); (.5, -.5) . that = 1/6, so -1/6.
    Of class 1: the others are (1, 0), minus target (.5, -.5); (-.5, .5) . that = -.5, so +.5.
    """
    found = leave_one_out_advantages(cells(0, 0, 1, 0), HALF)
    assert found == pytest.approx([-1 / 6, -1 / 6, 0.5, -1 / 6])


def test_leave_one_out_counts_nobody_who_was_not_read() -> None:
    found = leave_one_out_advantages(cells(0, -1, 0, 1, 0, -1), HALF)
    assert found == pytest.approx([-1 / 6, 0, -1 / 6, 0.5, -1 / 6, 0])
    assert leave_one_out_advantages(cells(-1, 1), HALF).tolist() == [0, 0]  # no other image: nothing to compare with


def test_log_ratio_by_hand() -> None:
    """Three of class 0, one of class 1, half an image added to each: shares .7 and .3 of 5.

    log(.5/.7) = -.3365 and log(.5/.3) = .5108; their mean over the images is (3 * -.3365 + .5108) / 4 = -.1247.
    """
    low, high = math.log(0.5 / 0.7), math.log(0.5 / 0.3)
    mean = (3 * low + high) / 4
    assert mean == pytest.approx(-0.12465, abs=1e-5)
    found = log_ratio_advantages(cells(0, 0, 1, 0), HALF, clip=2.0, smoothing=0.5)
    assert found == pytest.approx([low - mean, low - mean, high - mean, low - mean])
    clipped = log_ratio_advantages(cells(0, 0, 1, 0), HALF, clip=0.3, smoothing=0.5)
    assert clipped == pytest.approx([low - mean, low - mean, 0.3, low - mean])
    assert log_ratio_advantages(cells(-1, -1), HALF, clip=2.0, smoothing=0.5).tolist() == [0, 0]


def test_a_class_that_nobody_wants_is_the_worst_and_finite() -> None:
    found = log_ratio_advantages(cells(0, 1, 2, 1), np.array([0.5, 0.5, 0.0]), clip=2.0, smoothing=0.5)
    assert found[2] == -2.0
    assert found[0] > found[1] > 0


@pytest.mark.parametrize("target", [(0.5, 0.5), (0.2, 0.3, 0.5), (0.9, 0.1)])
def test_at_the_target_the_expectation_is_zero_for_every_class(target: tuple[float, ...]) -> None:
    """Over all 4-image outcomes: of each image's advantage, and given its own class, so that noise pulls nowhere."""
    shares = np.array(target)
    total, given = np.zeros(4), np.zeros(len(target))
    for outcome in product(range(len(target)), repeat=4):
        chance = float(np.prod(shares[list(outcome)]))
        advantages = leave_one_out_advantages(cells(*outcome), shares)
        total += chance * advantages
        given[outcome[0]] += chance * advantages[0]
    assert total == pytest.approx(np.zeros(4), abs=1e-12)
    assert given == pytest.approx(np.zeros(len(target)), abs=1e-12)


def test_away_from_the_target_the_expectation_is_the_gradient_of_the_squared_distance() -> None:
    """E[A | k] = -(onehot(k) - pi) . (p - pi): for p = (.8, .2), pi one half, -.3 and +.3."""
    shares, given = np.array([0.8, 0.2]), np.zeros(2)
    for outcome in product(range(2), repeat=4):
        chance = float(np.prod(shares[list(outcome)]))
        given[outcome[0]] += chance * leave_one_out_advantages(cells(*outcome), HALF)[0]
    assert given / shares == pytest.approx([-0.3, 0.3])


@pytest.mark.parametrize("advantage", ["leave-one-out", "log-ratio"])
@pytest.mark.parametrize("target_of", ["marginal", "joint"])
def test_the_order_of_images_and_prompts_has_no_say(advantage: str, target_of: str) -> None:
    generator = np.random.default_rng(0)
    classes = np.stack([generator.integers(-1, 2, 60), generator.integers(-1, 3, 60)], axis=1)
    prompts, targets = generator.integers(0, 4, 60), [HALF, np.array([0.2, 0.3, 0.5])]
    settings = PopulationConfig.model_validate({"advantage": advantage, "target_of": target_of})
    found = advantages_by_prompt(classes, prompts, targets, settings)
    order = generator.permutation(60)
    again = advantages_by_prompt(classes[order], prompts[order], targets, settings)
    assert again == pytest.approx(found[order], abs=1e-12)
    alone = population_advantages(classes[prompts == 2], targets, settings)
    assert alone == pytest.approx(found[prompts == 2], abs=1e-12)
    assert np.abs(found).max() > 0.1


def test_axes_by_themselves_and_together() -> None:
    """Two axes, images (0,0) (0,0) (0,1) (1,-1) and one without a face.

    Marginal, leave-one-out. Axis 1 as by hand above: -1/6, -1/6, -1/6, .5. Axis 2 of three read images, 0 0 1: of class
    0 the others are one half each, so 0; of class 1 they are (1, 0), so .5. Mean over both axes, where the fourth image
    could not be read on the second: 0 there. Joint, cells 0 0 1 of 4, a quarter each: of cell 0 the others are (.5, .5,
    0, 0), minus target (.25, .25, -.25, -.25); (.75, -.25, -.25, -.25) . that = .25; of cell 1 they are (1, 0, 0, 0),
    minus target (.75, -.25, -.25, -.25); (-.25, .75, -.25, -.25) . that = -.25.
    """
    classes = np.array([[0, 0], [0, 0], [0, 1], [1, -1], [-1, -1]])
    settings = PopulationConfig(advantage="leave-one-out")
    found = population_advantages(classes, [HALF, HALF], settings)
    assert found == pytest.approx([-1 / 12, -1 / 12, (-1 / 6 + 0.5) / 2, 0.25, -0.5])
    joint = population_advantages(classes, [HALF, HALF], settings.model_copy(update={"target_of": "joint"}))
    assert joint == pytest.approx([-0.25, -0.25, 0.25, 0, -0.5])


def test_the_nearest_shares_have_the_marginals_and_the_base_s_odds() -> None:
    base = np.array([[0.4, 0.1], [0.2, 0.3]])
    targets: list[FloatArray] = [np.array([0.5, 0.5]), np.array([0.3, 0.7])]
    found = nearest_shares(base, targets)
    assert found.sum(axis=1) == pytest.approx(targets[0])
    assert found.sum(axis=0) == pytest.approx(targets[1])
    # what is multiplied by a number for each row and each column keeps its odds ratio: .4 * .3 / (.1 * .2) = 6
    assert found[0, 0] * found[1, 1] / (found[0, 1] * found[1, 0]) == pytest.approx(6)


def test_log_ratios_to_the_target_by_hand() -> None:
    """The base shows three of class 0 and one of class 1: smoothed .7 and .3, so log(.5/.7) and log(.5/.3)."""
    base, seen = cells(0, 0, 1, 0)[:, None], cells(1, 0, -1)[:, None]
    settings = PopulationConfig(clip=0.5)
    found = target_log_ratios(seen, base, [HALF], settings)
    assert found == pytest.approx([0.5, math.log(0.5 / 0.7), -0.5])
    wide = target_log_ratios(seen, base, [HALF], PopulationConfig(target_of="joint"))
    assert wide == pytest.approx([math.log(0.5 / 0.3), math.log(0.5 / 0.7), -2.0])


def test_log_ratios_are_counted_prompt_by_prompt_on_what_the_base_sampled() -> None:
    classes, prompts = cells(0, 0, 1, 1, 0, 0)[:, None], np.array([0, 0, 0, 0, 1, 1])
    is_base = np.array([True, True, True, False, True, False])
    found = log_ratios_by_prompt(classes, prompts, is_base, [HALF], PopulationConfig())
    few, many = math.log(0.5 / 0.375), math.log(0.5 / 0.625)  # (1 + .5) / 4 and (2 + .5) / 4
    assert found == pytest.approx([many, many, few, few, math.log(0.5 / 0.75), math.log(0.5 / 0.75)])


def test_a_round_is_described() -> None:
    """Prompt 0 shows men alone, sqrt(.5); prompt 1 one of each, 0. Pooled 3 of 4 men: sqrt(2) / 4."""
    classes, prompts = cells(0, 0, 0, 1, -1)[:, None], np.array([0, 0, 1, 1, 1])
    found = describe_round(classes, prompts, [Axis(name="gender", classes=("male", "female"))])
    assert found == pytest.approx(
        {
            "round/discrepancy_pooled/gender": math.sqrt(2) / 4,
            "round/discrepancy_per_prompt/gender": math.sqrt(0.5) / 2,
            "round/face_share": 0.8,
        }
    )
