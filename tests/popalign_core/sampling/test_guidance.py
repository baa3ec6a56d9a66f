"""Schedules and pieces of guidance against values worked by hand, and the invariants that a user counts on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from popalign_core.config import AnnealingConfig, CADSConfig, SamplingConfig
from popalign_core.errors import ConfigError
from popalign_core.models.embeddings import embed_prompts
from popalign_core.sampling.engine import sample_images
from popalign_core.sampling.guidance import anneal_condition, annealing_gamma, guidance_weight, guide

CONFIG = SamplingConfig(n_steps=6, guidance_scale=3.0, scheduler="ddim")
SEEDS = [7, 8, 9]


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


@pytest.mark.parametrize(("tau1", "tau2"), [(0.9, 0.6), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (1.0, 1.1)])
def test_bad_borders_are_named(tau1: float, tau2: float) -> None:
    with pytest.raises(ConfigError, match=f"got tau1={tau1}, tau2={tau2}"):
        annealing_gamma(0.5, tau1, tau2)


@pytest.mark.parametrize("tau2", [0.9, 1.0])
def test_tau1_of_1_never_anneals(tau2: float) -> None:
    assert annealing_gamma(1.0, 1.0, tau2) == 1.0
    assert annealing_gamma(torch.linspace(0, 1, 5), 1.0, tau2).tolist() == [1.0] * 5


def config(**changes: Any) -> SamplingConfig:
    return SamplingConfig.model_validate(CONFIG.model_dump() | changes)


@pytest.mark.parametrize(
    ("t", "weight"),
    # 3 gamma(t) with tau1 = .6, tau2 = .9: gamma(.75) = (.9 - .75) / .3 = .5
    [(1.0, 0.0), (0.9, 0.0), (0.75, 1.5), (0.6, 3.0), (0.1, 3.0)],
)
def test_dynamic_cfg_is_unguided_early_and_whole_late(t: float, weight: float) -> None:
    assert guidance_weight(config(dynamic_cfg=AnnealingConfig()), t, 1.0) == pytest.approx(weight, abs=1e-12)


def test_dynamic_cfg_is_never_negative() -> None:
    """PITFALLS 9: a cosine goes below 0 early, and then pushes away from the prompt."""
    weights = [guidance_weight(config(dynamic_cfg=AnnealingConfig()), t / 100, 1.0) for t in range(100, -1, -1)]
    assert min(weights) == 0.0
    assert weights == sorted(weights)


@pytest.mark.parametrize(("sigma", "weight"), [(0.28, 1.0), (0.29, 3.0), (5.42, 3.0), (5.43, 1.0)])
def test_the_interval_is_open_below_and_closed_above(sigma: float, weight: float) -> None:
    assert guidance_weight(config(guidance_interval=(0.28, 5.42)), 0.5, sigma) == weight


def test_rescaled_guidance_by_hand() -> None:
    unguided, conditional = (
        torch.tensor([[[[0.0, 0.0]]], [[[5.0, 1.0]]]]),
        torch.tensor([[[[1.0, -1.0]]], [[[5.0, 3.0]]]]),
    )
    # first: guided (3, -3) has three times the deviation of (1, -1), phi = .5 takes half of that away: 2 = (1 + 3) / 2
    # second: 5 + 3 * 0 and 1 + 3 * 2 = 7, deviation 1 like that of (5, 3): unchanged
    guided = guide(unguided, conditional, 3.0, 0.5)
    torch.testing.assert_close(guided, torch.tensor([[[[2.0, -2.0]]], [[[5.0, 7.0]]]]))
    assert torch.equal(guide(unguided, conditional, 3.0, 0.0), torch.tensor([[[[3.0, -3.0]]], [[[5.0, 7.0]]]]))


def test_annealed_condition_by_hand() -> None:
    """gamma = 1/4, s = 1, psi = 1/2."""
    condition, noise = torch.tensor([[2.0, 6.0]]), torch.tensor([[0.0, 4.0 / 3**0.5]])
    # y' = y / 2 + sqrt(3)/2 n = (1, 3 + 2); mean 3, half range 2, as y has mean 4, half range 2: y'' = (2, 6)
    annealed = anneal_condition(condition, 0.25, noise, CADSConfig(noise_scale=1.0, mixing=0.5))
    torch.testing.assert_close(annealed, torch.tensor([[(2 + 1) / 2, (6 + 5) / 2]]))


def test_annealing_statistics_are_a_samples_own() -> None:
    """PITFALLS 9: over the whole batch, an image would depend on its neighbours."""
    generator = torch.Generator().manual_seed(0)
    condition = torch.randn((4, 5, 8), generator=generator) * torch.tensor([1.0, 10.0, 0.1, 3.0])[:, None, None]
    noise = torch.randn((4, 5, 8), generator=generator)
    together = anneal_condition(condition, 0.3, noise, CADSConfig())
    for row in range(4):
        alone = anneal_condition(condition[row : row + 1], 0.3, noise[row : row + 1], CADSConfig())
        torch.testing.assert_close(alone[0], together[row])
    torch.testing.assert_close(together.mean((1, 2)), condition.mean((1, 2)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.std((1, 2)), condition.std((1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise_scale", [0.0, 0.25])
def test_gamma_0_gives_no_nan(noise_scale: float) -> None:
    condition = torch.tensor([[1.0, 3.0, 5.0]])
    annealed = anneal_condition(condition, 0.0, torch.tensor([[0.0, 1.0, 5.0]]), CADSConfig(noise_scale=noise_scale))
    assert bool(annealed.isfinite().all())
    assert float(annealed.mean()) == pytest.approx(3.0)
    assert float(annealed.std()) == pytest.approx(2.0 if noise_scale else 0.0)


@pytest.fixture
def draw(tiny_pipeline: Any) -> Callable[..., torch.Tensor]:
    """Draws latents of two prompts, one of them twice, and counts the images the UNet sees."""
    embeddings = embed_prompts(tiny_pipeline, ["a nurse", "a pilot", ""], 4)
    seen: list[int] = []
    tiny_pipeline.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))

    def run(sampling: SamplingConfig, rows: tuple[int, ...] = (0, 1, 1), seeds: list[int] = SEEDS) -> torch.Tensor:
        seen.clear()
        prompts, empty = embeddings.rows([0, 1]), embeddings.rows([2])
        latents = sample_images(tiny_pipeline, prompts, empty, list(rows), seeds, sampling)[1]
        run.seen = list(seen)  # type: ignore[attr-defined]
        return latents

    return run


def test_cads_that_never_anneals_is_plain_sampling(draw: Callable[..., torch.Tensor]) -> None:
    assert torch.equal(draw(config(cads=CADSConfig(tau1=1.0))), draw(CONFIG))
    assert not torch.allclose(draw(config(cads=CADSConfig())), draw(CONFIG), atol=1e-2)


def test_cads_does_not_depend_on_the_batch(draw: Callable[..., torch.Tensor]) -> None:
    cads = config(cads=CADSConfig())
    whole = draw(cads)
    for row, prompt in enumerate((0, 1, 1)):
        torch.testing.assert_close(draw(cads, (prompt,), [SEEDS[row]])[0], whole[row], rtol=0, atol=1e-4)


def test_without_any_guidance_weight_the_prompt_is_lost(draw: Callable[..., torch.Tensor]) -> None:
    one, other = (
        draw(config(dynamic_cfg=AnnealingConfig(tau1=0.0, tau2=1e-6)), (0, 1, 1)),
        draw(config(dynamic_cfg=AnnealingConfig(tau1=0.0, tau2=1e-6)), (1, 0, 0)),
    )
    assert torch.equal(one, other)
    assert bool(draw(config(cads=CADSConfig(tau1=0.0, tau2=1e-6, noise_scale=0.0))).isfinite().all())


def test_no_forward_is_taken_that_does_not_count(draw: Callable[..., torch.Tensor]) -> None:
    draw(CONFIG)
    assert draw.seen == [6] * 6  # type: ignore[attr-defined]
    draw(config(guidance_scale=1.0))
    assert draw.seen == [3] * 6  # type: ignore[attr-defined]
    # ddim's 6 timesteps are 831, 665, 499, ...; gamma is .23 at .831, 1 from .6 on
    draw(config(dynamic_cfg=AnnealingConfig(tau1=0.6, tau2=0.8)))
    assert draw.seen == [3, 6, 6, 6, 6, 6]  # type: ignore[attr-defined]
    draw(config(guidance_interval=(0.28, 5.42)))
    assert set(draw.seen) == {3, 6}  # type: ignore[attr-defined]


def test_pieces_compose(draw: Callable[..., torch.Tensor]) -> None:
    everything = config(
        cads=CADSConfig(), dynamic_cfg=AnnealingConfig(), guidance_rescale=0.7, guidance_interval=(0.1, 20.0), eta=0.5
    )
    latents = draw(everything)
    assert bool(latents.isfinite().all())
    torch.testing.assert_close(draw(everything, (1,), [8])[0], latents[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cads": {"tau1": 0.9, "tau2": 0.6}}, "tau1 0.9 must be below tau2 0.6"),
        ({"guidance_interval": (2.0, 1.0)}, r"guidance_interval is \(2.0, 1.0\); give 0 <= low < high"),
        ({"guidance_scale": 1.0, "guidance_rescale": 0.7}, "guidance_rescale without guidance does nothing"),
        ({"eta": 0.5, "scheduler": "euler"}, "eta 0.5 is for ddim, scheduler is 'euler'"),
        ({"scheduler": "lcm", "n_steps": 51}, "n_steps is 51; lcm was distilled at 50"),
        ({"sdedit": {"folder": "x", "strength": 0.1}}, "leaves none to take"),
        ({"inject_identity": True, "fair_diffusion": {}}, "both choose an identity"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
