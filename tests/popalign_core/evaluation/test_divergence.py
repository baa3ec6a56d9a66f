import numpy as np
import pytest

from popalign_core.evaluation.divergence import evenness, kl_divergence, pairwise_bias, parity_gap

UNIFORM = np.full(4, 0.25)
SHARES = np.array([0.4, 0.3, 0.2, 0.1])


def test_by_hand() -> None:
    assert kl_divergence([0.75, 0.25], [0.5, 0.5]) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert evenness([0.75, 0.25]) == pytest.approx(0.8112781)
    assert parity_gap(SHARES, UNIFORM) == pytest.approx(0.3)
    # pairs differ by .1 .2 .3 .1 .2 .1
    assert pairwise_bias(SHARES, UNIFORM) == pytest.approx(1.0 / 6)


def test_finetune_fairs_extremes() -> None:
    """Shen et al.: of two classes the bias is between 0 and 1, of K at most 2 / K."""
    assert pairwise_bias([1.0, 0.0], [0.5, 0.5]) == 1.0
    assert pairwise_bias([1.0, 0, 0, 0], UNIFORM) == pytest.approx(0.5)


def test_all_are_0_at_any_target() -> None:
    for measure in (kl_divergence, parity_gap, pairwise_bias):
        assert measure(SHARES, SHARES) == pytest.approx(0.0, abs=1e-15)
    assert evenness(UNIFORM) == pytest.approx(1.0)


def test_classes_that_do_not_occur() -> None:
    assert kl_divergence([1.0, 0.0], [0.5, 0.5]) == pytest.approx(np.log(2))
    assert kl_divergence([0.5, 0.5], [1.0, 0.0]) == np.inf
    assert kl_divergence([1.0, 0.0], [1.0, 0.0]) == 0.0
    assert evenness([1.0, 0.0, 0.0]) == 0.0
    assert np.isnan(kl_divergence([np.nan, np.nan], [0.5, 0.5]))


def test_many_rows_at_once() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(4), (3, 5))
    for measure in (kl_divergence, parity_gap, pairwise_bias):
        assert measure(rows, UNIFORM).shape == (3, 5)
        assert measure(rows, UNIFORM)[1, 2] == pytest.approx(float(measure(rows[1, 2], UNIFORM)))
