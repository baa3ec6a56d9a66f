import time

import numpy as np
import pytest

from popalign_core.errors import InputError
from popalign_core.evaluation.fairness import discrepancies
from popalign_core.evaluation.intervals import interval, resample_counts, resample_means, resample_prompts


def _all(counts: np.ndarray, n: int, seed: int) -> np.ndarray:
    return np.concatenate(list(resample_counts(counts, n, seed)))


def test_a_resample_holds_as_many_images_as_its_prompts() -> None:
    counts = np.array([[3, 1], [0, 10], [0, 0]])
    drawn = _all(counts, 50, seed=3)
    prompts = resample_prompts(3, 50, np.random.default_rng(3))
    assert drawn.shape == (50, 3, 2)
    np.testing.assert_array_equal(drawn.sum(axis=2), counts.sum(axis=1)[prompts])
    assert (drawn[prompts == 1][:, 0] == 0).all()  # prompt 1 never showed class 0


def test_equal_seeds_give_equal_resamples_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.array([[3, 1, 2], [5, 5, 0]])
    whole = _all(counts, 40, seed=1)
    monkeypatch.setattr("popalign_core.evaluation.intervals._CELLS_AT_ONCE", 18)
    assert [len(block) for block in resample_counts(counts, 40, 1)][:2] == [3, 3]
    np.testing.assert_array_equal(_all(counts, 40, seed=1), whole)
    assert not np.array_equal(_all(counts, 40, seed=2), whole)


def test_two_thousand_resamples_take_well_under_a_second() -> None:
    counts = np.random.default_rng(0).multinomial(60, [0.6, 0.3, 0.1], size=14)
    start = time.process_time()
    values = discrepancies(_all(counts, 2000, seed=0).sum(axis=1))
    assert time.process_time() - start < 1.0
    assert values.shape == (2000,)


def test_spread_follows_prompts_not_images() -> None:
    # Ten prompts, all one class or all the other: the spread of a share is sqrt(.25 / 10) = .158 however many images.
    counts = np.array([[600, 0], [0, 600]] * 5)
    shares = _all(counts, 4000, seed=0).sum(axis=1)[:, 0] / 6000
    assert shares.std() == pytest.approx(0.158, abs=0.006)


def test_joint_cells_pair_two_systems() -> None:
    # Cells (before, after): every image moved from class 0 to class 1, in half of the prompts.
    counts = np.zeros((10, 2, 2))
    counts[:5, 0, 1] = 30
    counts[5:, 0, 0] = 30
    drawn = _all(counts.reshape(10, 4), 500, seed=0).reshape(500, 10, 2, 2)
    before, after = drawn.sum(axis=3), drawn.sum(axis=2)
    np.testing.assert_array_equal(before[..., 0], 30)
    np.testing.assert_array_equal(after.sum(axis=2), before.sum(axis=2))


def test_interval_is_centred_on_the_estimate_and_cut_to_the_bounds() -> None:
    resampled = np.linspace(0.1, 0.5, 1001)  # mean .3, 2.5% at .11, 97.5% at .49
    assert interval(0.2, resampled, 0.95) == pytest.approx((0.01, 0.39))
    assert interval(0.1, resampled, 0.95, bounds=(0.0, 1.0)) == pytest.approx((0.0, 0.29))


def test_interval_needs_resamples_with_something_to_measure() -> None:
    resampled = np.array([0.5] * 94 + [np.nan] * 6)
    assert interval(0.5, resampled, 0.95) is None
    assert interval(0.5, np.array([0.5] * 95 + [np.nan] * 5), 0.95) == (0.5, 0.5)


def test_interval_of_a_discrepancy_covers_what_is_expected_at_its_size() -> None:
    # 14 prompts whose share of class 0 is Beta(3, 1); truth: the mean over prompts of D at 60 images.
    generator = np.random.default_rng(5)
    expected = discrepancies(generator.multinomial(60, generator.dirichlet([3, 1], size=50_000))).mean()
    hits = 0
    for seed in range(200):
        counts = generator.multinomial(60, generator.dirichlet([3, 1], size=14))
        found = interval(discrepancies(counts).mean(), discrepancies(_all(counts, 300, seed)).mean(axis=1), 0.95)
        assert found is not None
        hits += found[0] <= expected <= found[1]
    assert 0.90 <= hits / 200 <= 0.99


def test_resampled_means_have_both_sources_of_spread() -> None:
    # Two prompts, means 0 and 10, four images each, variance 1 within: (25 + 1/4) / 2 = 12.6 in all.
    values, prompt = [-1, 1, -1, 1, 9, 11, 9, 11], [0, 0, 0, 0, 7, 7, 7, 7]
    means = resample_means(values, prompt, 20_000, seed=0)
    assert means.mean() == pytest.approx(5.0, abs=0.1)
    assert means.var() == pytest.approx(12.625, rel=0.03)


@pytest.mark.parametrize("counts", [np.zeros((0, 2)), np.array([1, 2]), np.array([[1.5, 2]]), np.array([[-1, 2]])])
def test_bad_counts_are_refused(counts: np.ndarray) -> None:
    with pytest.raises(InputError, match="whole numbers"):
        next(resample_counts(counts, 10, 0))
