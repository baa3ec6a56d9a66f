import pytest
import torch

from popalign_core.errors import ConfigError
from popalign_core.sampling.guidance import annealing_gamma


@pytest.mark.parametrize(
    ("t", "gamma"),
    # tau1 = .5, tau2 = .9: (.9 - .7) / .4 = .5 and (.9 - .8) / .4 = .25 between
    [(0.0, 1.0), (0.5, 1.0), (0.7, 0.5), (0.8, 0.25), (0.9, 0.0), (1.0, 0.0)],
)
def test_gamma_by_hand(t: float, gamma: float) -> None:
    assert annealing_gamma(t, 0.5, 0.9) == pytest.approx(gamma, abs=1e-12)


def test_the_condition_is_weak_early_and_whole_late() -> None:
    # sampling runs from t = 1 to t = 0; the inverted schedule of PITFALLS 9 would fall instead
    gamma = annealing_gamma(torch.linspace(1, 0, 101), 0.6, 0.9)
    assert float(gamma[0]) == 0.0
    assert float(gamma[-1]) == 1.0
    assert bool((gamma.diff() >= 0).all())
    assert gamma.shape == (101,)


@pytest.mark.parametrize(("tau1", "tau2"), [(0.9, 0.6), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_bad_borders_are_named(tau1: float, tau2: float) -> None:
    with pytest.raises(ConfigError, match=f"got tau1={tau1}, tau2={tau2}"):
        annealing_gamma(0.5, tau1, tau2)
