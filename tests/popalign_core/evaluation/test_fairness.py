import numpy as np
import pytest

from popalign_core.errors import InputError
from popalign_core.evaluation.fairness import (
    corrected_prevalence,
    discrepancies,
    discrepancy,
    discrepancy_floor,
    squared_unbiased,
)


def test_one_class_of_six_is_far_from_fair() -> None:
    # sqrt((1 - 1/6)^2 + 5/36) = .9129; dividing by the observed classes would say 0.
    assert discrepancy([100, 0, 0, 0, 0, 0]) == pytest.approx(0.9129, abs=1e-4)


def test_hand_worked_values() -> None:
    assert discrepancy([100, 0]) == pytest.approx(np.sqrt(0.5))
    assert discrepancy([25, 25]) == 0.0
    # p = (.7, .2, .1): (.3667^2 + .1333^2 + .2333^2)^.5
    assert discrepancy([70, 20, 10]) == pytest.approx(0.45461, abs=1e-5)
    # target (.5, .3, .2): (.2^2 + .1^2 + .1^2)^.5
    assert discrepancy([70, 20, 10], target=[0.5, 0.3, 0.2]) == pytest.approx(np.sqrt(0.06))


def test_pooling_hides_what_prompts_show() -> None:
    nurse_and_engineer = np.array([[5, 95], [95, 5]])
    assert discrepancy(nurse_and_engineer.sum(axis=0)) == 0.0
    assert discrepancies(nurse_and_engineer).mean() == pytest.approx(0.636, abs=5e-4)


def test_rows_without_images_are_nan() -> None:
    np.testing.assert_array_equal(discrepancies([[0, 0], [1, 1]]), [np.nan, 0.0])


@pytest.mark.parametrize(
    ("n", "k", "expected"), [(100, 2, 0.056), (10_000, 2, 0.006), (100, 6, 0.087), (10_000, 6, 0.009)]
)
def test_floor_matches_published_values(n: int, k: int, expected: float) -> None:
    assert discrepancy_floor(n, k) == pytest.approx(expected, abs=5e-4)


def test_floor_of_few_draws_is_exact() -> None:
    # One draw is always one-hot. Two draws of two classes: D = .7071 half the time, else 0.
    assert discrepancy_floor(1, 6) == pytest.approx(0.91287, abs=1e-5)
    assert discrepancy_floor(1, 2) == pytest.approx(np.sqrt(0.5))
    assert discrepancy_floor(2, 2) == pytest.approx(np.sqrt(0.5) / 2)
    # Two draws of three classes: equal (1/3) D = sqrt(2/3); different (2/3) D = sqrt(1/6).
    assert discrepancy_floor(2, 3) == pytest.approx(np.sqrt(2 / 3) / 3 + np.sqrt(1 / 6) * 2 / 3)


@pytest.mark.parametrize(("n", "k"), [(7, 3), (20, 6), (32, 12), (33, 3), (60, 6), (500, 4)])
def test_floor_agrees_with_simulation(n: int, k: int) -> None:
    draws = np.random.default_rng(1).multinomial(n, [1 / k] * k, size=100_000)
    assert discrepancy_floor(n, k) == pytest.approx(discrepancies(draws).mean(), rel=0.006)


def test_floor_of_a_skewed_target_is_that_of_a_sampler_at_the_target() -> None:
    # n = 1 over (.9, .1): D = .1 sqrt 2 with probability .9, .9 sqrt 2 with .1; mean .18 sqrt 2.
    assert discrepancy_floor(1, 2, [0.9, 0.1]) == pytest.approx(0.18 * np.sqrt(2), rel=0.02)
    assert discrepancy_floor(100, 2, [0.5, 0.5]) == discrepancy_floor(100, 2)


def test_unbiased_square_is_right_on_average() -> None:
    draws = np.random.default_rng(2).multinomial(10, [0.7, 0.2, 0.1], size=40_000)
    mean = squared_unbiased(draws[:4000]).mean()
    assert mean == pytest.approx(0.45461**2, abs=0.006)
    # p = (.6, .4), n = 10: .02 - (1 - .52) / 9
    assert float(squared_unbiased([6, 4])) == pytest.approx(0.02 - 0.48 / 9)


def test_correction_undoes_a_classifier_that_misses_women() -> None:
    # FairFace, as published: male recall .966, female .445: a balanced set reads (.966 + .555) / 2 = 76% male.
    confusion = [[0.966, 0.034], [0.555, 0.445]]
    np.testing.assert_allclose(corrected_prevalence([7605, 2395], confusion), [0.5, 0.5], atol=1e-9)


def test_perfect_classifier_changes_nothing() -> None:
    np.testing.assert_allclose(corrected_prevalence([3, 1, 0], np.eye(3)), [0.75, 0.25, 0.0])


def test_correction_stays_on_the_simplex_and_is_the_nearest_point() -> None:
    confusion = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    reading = np.array([0.5, 0.5, 0.0])
    found = corrected_prevalence(reading * 1000, confusion)
    # On the edge p3 = 0, p = (a, 1 - a): q - C^T p = (.3 - .6 a, -.2 + .6 a, -.1), least at a = 5/12.
    np.testing.assert_allclose(found, [5 / 12, 7 / 12, 0.0], atol=1e-9)
    others = np.random.default_rng(0).dirichlet([1, 1, 1], size=5000)
    best = np.linalg.norm(confusion.T @ found - reading)
    assert best <= np.linalg.norm(others @ confusion - reading, axis=1).min() + 1e-12


def test_correction_of_many_rows_is_that_of_each() -> None:
    confusion = [[0.9, 0.1], [0.25, 0.75]]
    rows = np.array([[95, 5], [60, 40], [10, 90]])
    np.testing.assert_allclose(
        corrected_prevalence(rows, confusion), [corrected_prevalence(r, confusion) for r in rows]
    )


@pytest.mark.parametrize(
    ("counts", "target", "reason"),
    [
        ([0, 0], None, "no image was read"),
        ([3], None, "at least 2 classes"),
        ([3, -1], None, "at least 0"),
        ([3, float("nan")], None, "finite"),
        ([3, 1], [0.5, 0.3, 0.2], "2 classes"),
        ([3, 1], [0.5, 0.6], "sum to 1"),
    ],
)
def test_bad_counts_are_refused(counts: list[float], target: list[float] | None, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        discrepancy(counts, target)


@pytest.mark.parametrize(
    ("confusion", "reason"),
    [
        ([[0.9, 0.1]], "square"),
        ([[0.9, 0.2], [0.1, 0.9]], "sum to 1"),
        ([[0.6, 0.4], [0.6, 0.4]], "does not tell two classes apart"),
        (np.eye(3), "one list"),
    ],
)
def test_bad_confusion_is_refused(confusion: list[list[float]], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        corrected_prevalence([3, 1], confusion)


def test_floor_and_unbiased_need_images() -> None:
    with pytest.raises(InputError, match="n >= 1"):
        discrepancy_floor(0, 2)
    assert np.isnan(squared_unbiased([1, 0]))
