"""The largest difference between classes that were asked for, and its interval."""

import numpy as np
import pytest

from popalign_core.config import EvaluationConfig
from popalign_core.evaluation.counts import FloatArray
from popalign_core.evaluation.gaps import ONE_CLASS, Gap, gap_measure

CONFIG = EvaluationConfig()


def shares(parts: list[list[int]], n: int) -> list[FloatArray]:
    """Of each class `[1, P, 2]`: so many of `n` images in each prompt."""
    return [np.stack([np.array(part, dtype=float), np.full(len(part), float(n))], axis=-1)[None] for part in parts]


def gap(parts: list[list[int]], n: int) -> Gap:
    return gap_measure("no_face_gap", "gender", shares(parts, n), of_shares=True, width=1.0)


def test_the_largest_difference_by_hand() -> None:
    found = gap([[1, 2, 3, 2] * 4, [5, 6, 5, 4] * 4, [3] * 16], 10)
    assert found.value == pytest.approx(0.5 - 0.2)
    low, high = found.bounded_interval(CONFIG)
    assert 0 < low < 0.3 < high < 0.75
    assert found.n == 480


def test_equal_classes_have_an_interval_from_0() -> None:
    low, high = gap([[1, 2, 3, 2], [2, 1, 2, 3]], 10).bounded_interval(CONFIG)
    assert low == 0.0
    assert high > 0.1


def test_no_difference_in_few_images_is_not_certain() -> None:
    low, high = gap([[0, 0, 0, 0], [0, 0, 0, 0]], 5).bounded_interval(CONFIG)
    assert low == 0.0
    assert high > 0.05
    assert gap([[0] * 40, [0] * 40], 50).bounded_interval(CONFIG)[1] < 0.01


def test_a_class_that_no_prompt_asks_for_takes_no_part() -> None:
    asked = shares([[1, 2, 3, 2], [5, 6, 5, 4]], 10)
    nobody = np.zeros_like(asked[0])
    found = gap_measure("no_face_gap", "race", [asked[0], nobody, asked[1]], of_shares=True, width=1.0)
    assert found.value == pytest.approx(0.3)
    alone = gap_measure("no_face_gap", "race", [asked[0], nobody], of_shares=True, width=1.0)
    assert (alone.n, alone.reason) == (0, ONE_CLASS)
    assert np.isnan(alone.value)


def test_a_class_that_one_prompt_alone_asks_for_leaves_no_interval() -> None:
    """Without that prompt there would be no gap, which says nothing about how far it may be off."""
    parts = [np.array([3.0, 1, 0]), np.array([10.0, 0, 0])]
    wholes = [np.array([30.0, 30, 30]), np.array([30.0, 0, 0])]
    terms = [np.stack(each, axis=-1)[None] for each in zip(parts, wholes, strict=True)]
    for of_shares in (True, False):
        found = gap_measure("gap", "gender", terms, of_shares=of_shares, width=1.0)
        assert found.value == pytest.approx(1 / 3 - 4 / 90)
        assert np.isnan(found.bounded_interval(CONFIG)).all()
        assert np.isnan(found.bounded_change(gap([[1, 2, 3], [5, 6, 5]], 10), CONFIG)).all()


@pytest.mark.parametrize(("rate", "n_prompts", "n"), [(0.016, 16, 9), (0.03, 16, 9), (0.02, 40, 3)])
def test_small_shares_are_held_too(rate: float, n_prompts: int, n: int) -> None:
    """One class never, the other now and then: `difference +- t s` held the truth in 90 to 92 of 100."""
    generator = np.random.default_rng(0)
    drawn = generator.binomial(n, rate, (500, n_prompts))
    ends = [gap([[0] * n_prompts, list(hits)], n).bounded_interval(CONFIG) for hits in drawn]
    assert np.mean([low <= rate <= high for low, high in ends]) >= 0.95


def test_the_change_of_a_gap_holds_both_intervals() -> None:
    first, second = gap([[1, 2, 3, 2] * 4, [8, 9, 8, 9] * 4], 10), gap([[1, 2, 3, 2] * 4, [2, 2, 2, 1] * 4], 10)
    low, high = second.bounded_change(first, CONFIG)
    assert low < second.value - first.value < high < 0
    with pytest.raises(TypeError, match="no_face_gap cannot be compared with"):
        first.change_interval(object(), CONFIG)  # type: ignore[arg-type]


def _populations(rates: tuple[float, ...], n: int, seed: int) -> list[Gap]:
    """24 prompts that differ; in each, 10 images of every class, of which a class's rate has no face."""
    generator = np.random.default_rng(seed)
    k = len(rates)
    concentration = 12.0
    found = []
    for _ in range(n):
        chances = generator.beta(concentration * np.array(rates), concentration * (1 - np.array(rates)), size=(24, k))
        drawn = generator.binomial(10, chances).T
        found.append(gap([list(part) for part in drawn], 10))
    return found


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.05, 0.25), (0.1, 0.1, 0.3), (0.2, 0.2, 0.2, 0.2)])
def test_the_interval_holds_the_truth_and_a_gap_of_0_is_excluded_seldom(rates: tuple[float, ...]) -> None:
    truth = max(rates) - min(rates)
    ends = [one.bounded_interval(CONFIG) for one in _populations(rates, 400, 3)]
    held = np.mean([low <= truth <= high for low, high in ends])
    assert held >= 0.94
    if truth == 0:
        assert np.mean([low > 0 for low, _ in ends]) <= 0.06


def test_scores_have_no_least_noise() -> None:
    generator = np.random.default_rng(0)
    sums = [np.stack([10 * (20 + c + generator.normal(0, 0.5, 12)), np.full(12, 10.0)], axis=-1)[None] for c in (0, 1)]
    found = gap_measure("quality_gap:clip_score", "gender", sums, of_shares=False, width=200.0)
    assert found.value == pytest.approx(1.0, abs=0.5)
    low, high = found.bounded_interval(CONFIG)
    assert low < 1.0 < high
    assert high - low < 2
