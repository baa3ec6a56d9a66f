"""The 1-D experiment: exact densities, the theory, and what objectives do to mass they are not told about."""

from pathlib import Path

import numpy as np
import pytest
import torch

from popalign_core.errors import InputError
from popalign_core.synthetic.experiment import ExperimentSetting, Outcome, summarise_experiment, train_objective
from popalign_core.synthetic.experiment_page import build_page
from popalign_core.synthetic.mixture import expected_masses, preference_samples, reference_mixture


@pytest.fixture(scope="module")
def short() -> dict[str, Outcome]:
    settings = (ExperimentSetting("sft"), ExperimentSetting(normaliser="batch"), ExperimentSetting())
    return {setting.name: train_objective(setting, 0, n_steps=1000) for setting in settings}


def test_the_reference_is_a_density_with_the_papers_masses() -> None:
    x = torch.linspace(-14, 14, 5001, dtype=torch.float64)
    density = reference_mixture().log_density(x).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-6)
    assert reference_mixture().masses() == pytest.approx((0.6652, 0.2447, 0.0900), abs=5e-4)
    right = x > 3.5
    assert float(torch.trapezoid(density[right], x[right])) == pytest.approx(reference_mixture().masses()[2], abs=1e-3)
    # by hand at 0: G2's peak, and nothing of the others
    assert float(reference_mixture().log_density(torch.zeros(1, dtype=torch.float64)).exp()) == pytest.approx(
        0.24473 / np.sqrt(2 * np.pi), rel=1e-4
    )


def test_preferences_speak_of_g1_and_g3_only() -> None:
    preferred, dispreferred = preference_samples(10_000, torch.Generator().manual_seed(0))
    assert float((preferred < 0).double().mean()) == pytest.approx(0.5, abs=1e-3)
    # e^2 : 1
    assert float((dispreferred < 0).double().mean()) == pytest.approx(0.8808, abs=0.01)
    for x in (preferred, dispreferred):
        assert float((x.abs() < 2).double().mean()) < 1e-3


def test_theory_at_beta_1_and_2_by_hand() -> None:
    g1, g2, g3 = expected_masses(1)
    assert g1 == pytest.approx(g3)
    assert g2 == pytest.approx(0.24473, abs=1e-4)
    # compared mass .7553; at beta 2 G1 and G3 use .7553 * sqrt(p_w * p_l) each
    assert expected_masses(2) == pytest.approx(
        (0.7553 * np.sqrt(0.5 * 0.8808), 0.3145, 0.7553 * np.sqrt(0.5 * 0.1192)), abs=1e-3
    )
    with pytest.raises(InputError, match=r"at beta 0\.5 G1 and G3 ask for 1\.8"):
        expected_masses(0.5)


def test_without_normaliser_g1_and_g3_are_evened_out_and_g2_is_kept(short: dict[str, Outcome]) -> None:
    row = summarise_experiment([short["popalign zero beta 1"]]).iloc[0]
    assert row["balanced"]
    assert row["G2_kept"]


@pytest.mark.parametrize("beta", [2.0, 4.0])
def test_training_ends_where_the_theory_says(beta: float) -> None:
    found = train_objective(ExperimentSetting(beta=beta), 0, n_steps=500).history[-1][1:]
    assert found == pytest.approx(expected_masses(beta), abs=0.03)


def test_sft_and_the_batch_normaliser_take_g2(short: dict[str, Outcome]) -> None:
    assert short["sft"].history[-1][2] < 0.02
    assert short["popalign batch beta 1"].history[-1][2] < 0.05


def test_the_seed_decides_and_the_history_begins_at_the_reference() -> None:
    first, again, other = (train_objective(ExperimentSetting(), seed, n_steps=60, log_every=20) for seed in (3, 3, 4))
    assert [row[0] for row in first.history] == [0, 20, 40, 60]
    assert first.history[0][1:] == pytest.approx(reference_mixture().masses())
    assert first.history == again.history
    assert first.history != other.history


def test_the_page_stands_alone(short: dict[str, Outcome], tmp_path: Path) -> None:
    page = build_page(list(short.values()))
    assert page.count("<svg") == 6
    assert "http" not in page
    assert "popalign zero beta 1" in page


@pytest.mark.parametrize(
    ("setting", "n_samples", "message"),
    [
        (ExperimentSetting("kto"), 10, "objective 'kto'"),
        (ExperimentSetting(normaliser="ema"), 10, "normaliser 'ema'"),
        (ExperimentSetting(beta=0), 10, "beta must be above 0, got 0"),
        (ExperimentSetting(), 1, "at least 2 samples per side, got 1"),
    ],
)
def test_bad_settings_are_named(setting: ExperimentSetting, n_samples: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_objective(setting, 0, n_steps=1, n_samples=n_samples)
