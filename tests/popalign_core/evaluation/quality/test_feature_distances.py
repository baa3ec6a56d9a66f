"""Distances of sets of features: the public formulas, hand-worked cases, and what a jackknife knows."""

import numpy as np
import pytest
import torch
from torch import Tensor

from popalign_core.evaluation.quality import feature_distances as distances
from popalign_core.evaluation.quality.feature_distances import (
    cubic_kernel,
    distances_from_siblings,
    expected_if_equal,
    frechet_distance,
    gaussian_kernel,
    jackknife_reach,
    kernel_sums,
    squared_mmd,
)


def features(n: int, shift: float = 0.0, seed: int = 0, width: int = 6) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + shift


def public_kid(x: np.ndarray, y: np.ndarray) -> float:
    """torch-fidelity's estimate on one subset that is the whole set: without the diagonals of xx and yy."""
    m, n = len(x), len(y)
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2 * xy.mean())


def public_cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """Google's: means of Gaussian kernels, sigma 10, the diagonals included, times 1000."""
    means = [np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 200).mean() for a, b in ((x, x), (y, y), (x, y))]
    return float(1000 * (means[0] + means[1] - 2 * means[2]))


@pytest.mark.parametrize("block", [3, 1024])
def test_kernel_distances_are_the_public_ones(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(distances, "_BLOCK", block)
    x, y = features(10), features(12, 0.5, seed=1)
    prompts = np.arange(10) // 2, np.arange(12) % 5
    arrays = x.double().numpy(), y.double().numpy()
    kid, _ = squared_mmd(kernel_sums(x, prompts[0], y, prompts[1], cubic_kernel), unbiased=True)
    assert kid == pytest.approx(public_kid(*arrays), rel=1e-9)
    cmmd, _ = squared_mmd(kernel_sums(x, prompts[0], y, prompts[1], gaussian_kernel), unbiased=False)
    assert cmmd == pytest.approx(public_cmmd(*arrays), rel=1e-9)


def test_without_one_prompt_is_the_distance_of_the_others() -> None:
    x, y = features(9), features(12, 1.0, seed=1)
    x_prompt, y_prompt = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2]), np.arange(12) % 3
    _, without = squared_mmd(kernel_sums(x, x_prompt, y, y_prompt, cubic_kernel), unbiased=True)
    kept = x[x_prompt != 1].double().numpy(), y[y_prompt != 1].double().numpy()
    assert without[1] == pytest.approx(public_kid(*kept), rel=1e-9)
    assert without.shape == (3,)


def test_a_lone_prompt_has_no_error() -> None:
    x = features(4)
    sums = kernel_sums(x, np.zeros(4, np.intp), x + 1, np.zeros(4, np.intp), cubic_kernel)
    value, without = squared_mmd(sums, unbiased=True)
    assert value > 0
    assert np.isnan(jackknife_reach(without, 0.95))


def test_the_jackknife_of_a_mean_is_its_interval() -> None:
    """Deviations of 8 values of mean 4 with squares of sum 44; Student's 97.5% point, 7 free, is 2.365."""
    values = np.array([1.0, 2, 2, 3, 4, 5, 7, 8])
    assert np.square(values - 4).sum() == 44
    assert jackknife_reach((values.sum() - values) / 7, 0.95) == pytest.approx(2.365 * (44 / 7 / 8) ** 0.5, rel=5e-3)


def test_the_floor_of_cmmd_is_what_equal_distributions_give() -> None:
    found, floors = [], []
    for seed in range(300):
        x, y = features(20, seed=2 * seed, width=3) * 5, features(30, seed=2 * seed + 1, width=3) * 5
        sums = kernel_sums(x, np.arange(20), y, np.arange(30) % 20, gaussian_kernel)
        found.append(squared_mmd(sums, unbiased=False)[0])
        floors.append(expected_if_equal(sums))
    assert np.mean(floors) == pytest.approx(np.mean(found), rel=0.03)


def test_intervals_hold_the_truth_where_there_is_a_distance() -> None:
    """Prompts with means of their own; closed form of the Gaussian kernel of two normal distributions, sigma^2 16."""
    hits, n_prompts, width, shift = 0, 50, 4, 1.0
    variance = 16.0
    peak = (variance / (variance + 4)) ** (width / 2)
    truth = 2 * peak * (1 - np.exp(-width * shift**2 / (2 * (variance + 4))))
    prompt = np.repeat(np.arange(n_prompts), 4)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(x, y).square() / (2 * variance))

    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        means = torch.randn(n_prompts, width, generator=generator)[prompt]
        x = means + torch.randn(len(prompt), width, generator=generator)
        y = means + shift + torch.randn(len(prompt), width, generator=generator)
        value, without = squared_mmd(kernel_sums(x, prompt, y, prompt, kernel), unbiased=True)
        hits += abs(value - truth) < jackknife_reach(without, 0.95)
    assert 0.90 <= hits / 100 <= 0.99


@pytest.mark.parametrize("n", [5, 40])
def test_fid_by_its_formula(n: int) -> None:
    """Fewer pictures than features and more; the root by eigenvalues of the product of the covariances."""
    x, y = features(n).double() * 2, features(n + 3, 0.5, seed=1).double()
    covariances = torch.cov(x.T), torch.cov(y.T)
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * root
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_fid_of_moved_pictures_is_the_square_of_the_way() -> None:
    x = features(50)
    assert frechet_distance(x, x + 0.5) == pytest.approx(6 * 0.25, abs=1e-5)


def test_diversity_is_the_distance_from_the_others_of_a_prompt() -> None:
    """Directions 0 and 90 degrees are 1 apart; three of 0, 0, 90: (0 + 1)/2, (0 + 1)/2, 1; a lone one has no other."""
    vectors = torch.tensor([[2.0, 0], [0, 1], [1, 0], [3, 0], [0, 2], [1, 1]])
    found = distances_from_siblings(vectors, np.array(["a", "a", "b", "b", "b", "c"]))
    np.testing.assert_allclose(found, [1, 1, 0.5, 0.5, 1, np.nan], atol=1e-12)


def test_a_single_image_has_no_expected_distance() -> None:
    alone, several = np.zeros(1, dtype=np.intp), np.zeros(5, dtype=np.intp)
    sums = kernel_sums(features(1), alone, features(5, seed=1), several, cubic_kernel)
    assert np.isnan(expected_if_equal(sums))
