"""Each objective of the configuration reaches its loss; the normalisers are what they say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import TIME_IDS, errors, run

from popalign_core.config import TrainingConfig
from popalign_core.errors import InputError
from popalign_core.training.batch import Batch, draw_batch
from popalign_core.training.data import PreferenceData
from popalign_core.training.losses import (
    anchor_normaliser,
    batch_normaliser,
    diffusion_kto_loss,
    popalign_loss,
    set_dpo_loss,
)
from popalign_core.training.noising import forward_process
from popalign_core.training.objective import Running, compute_loss

SETTINGS = {"n_pairs": 8, "n_steps": 12, "learning_rate": 2e-3, "checkpoint_every": 12}


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(SETTINGS | changes)


@pytest.fixture
def moved(make_pipeline: Callable[[], Any]) -> Any:
    """A policy that has left the reference a little."""
    pipeline = make_pipeline()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in pipeline.unet.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return pipeline


def draw(pipeline: Any, data: PreferenceData, settings: TrainingConfig) -> Batch:
    return draw_batch(data, forward_process(pipeline.scheduler, settings), settings, TIME_IDS, 1)


def both_errors(policy: Any, reference: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return errors(policy, batch), errors(reference, batch)


def test_set_dpo_and_kto_are_the_losses_of_the_batch(moved: Any, tiny_pipeline: Any, data: PreferenceData) -> None:
    for objective in ("set-dpo", "diffusion-kto"):
        settings = config(objective=objective, beta=3)
        batch = draw(moved, data, settings)
        policy_mse, reference_mse = both_errors(moved, tiny_pipeline, batch)
        loss, terms = compute_loss(moved.unet, tiny_pipeline.unet, batch, settings, Running())
        if objective == "set-dpo":
            assert set(batch.set_index.tolist()) == {0, 1}
            expected = set_dpo_loss(policy_mse, reference_mse, batch.preferred, batch.set_index, beta=3)
            assert len(expected) == 2
        else:
            expected = diffusion_kto_loss(policy_mse, reference_mse, batch.preferred, beta=3)
        assert float(loss.detach()) == pytest.approx(float(expected.mean()), rel=1e-4)
        assert "normaliser" not in terms


@pytest.mark.parametrize("normaliser", ["batch", "zero", "ema", "anchor"])
def test_normalisers(moved: Any, tiny_pipeline: Any, data: PreferenceData, normaliser: str) -> None:
    settings = config(normaliser=normaliser, retention=1e-9, normaliser_decay=0.75, beta=3)
    batch = draw(moved, data, settings)
    policy_mse, reference_mse = both_errors(moved, tiny_pipeline, batch)
    mine = batch_normaliser(policy_mse[:16], reference_mse[:16], batch.preferred)
    assert 0 < int(batch.generic.sum()) < 8
    anchors = anchor_normaliser(policy_mse[16:][batch.generic], reference_mse[16:][batch.generic])
    z = {"batch": mine, "zero": 0.0, "ema": 0.75 * 0.5 + 0.25 * mine, "anchor": anchors}[normaliser]
    running = Running(normaliser=0.5, n_steps=3)
    loss, terms = compute_loss(moved.unet, tiny_pipeline.unet, batch, settings, running)
    expected = popalign_loss(policy_mse[:16], reference_mse[:16], batch.preferred, beta=3, normaliser=float(z))
    assert terms["normaliser"] == pytest.approx(float(z), rel=1e-4)
    assert float(loss.detach()) == pytest.approx(float(expected.mean()), rel=1e-4)
    if normaliser != "zero":
        assert (running.normaliser, running.n_steps) == (pytest.approx(float(z), rel=1e-4), 4)


def test_the_moving_mean_begins_at_the_first_batch(moved: Any, tiny_pipeline: Any, data: PreferenceData) -> None:
    batch = draw(moved, data, config())
    terms = [
        compute_loss(moved.unet, tiny_pipeline.unet, batch, config(normaliser=name), Running())[1]["normaliser"]
        for name in ("batch", "ema")
    ]
    assert terms[0] == pytest.approx(terms[1])


def test_a_batch_without_anchors_keeps_the_last_one(moved: Any, tiny_pipeline: Any, data: PreferenceData) -> None:
    settings = config(normaliser="anchor")
    batch = draw(moved, data, settings)
    batch = replace(batch, generic=torch.zeros_like(batch.generic))
    terms = compute_loss(moved.unet, tiny_pipeline.unet, batch, settings, Running(0.25, 7))[1]
    assert terms["normaliser"] == 0.25


def test_anchors_need_generic_images(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    bare = replace(data, retained_generic=torch.zeros_like(data.retained_generic))
    with pytest.raises(InputError, match=r"normaliser is 'anchor'.*give prompts\.retained_subjects"):
        run(tiny_pipeline, bare, tmp_path, **SETTINGS | {"normaliser": "anchor"})


def test_preserving_the_preferred_scales_the_other_side_alone(
    moved: Any, tiny_pipeline: Any, data: PreferenceData
) -> None:
    # the dispreferred error points where the preferred one does, and farther
    farther = torch.where(data.preferred[:, None, None, None], data.latents, -2 * data.latents)
    data = replace(data, latents=farther)
    gradients, losses = [], []
    for preserve in (False, True):
        moved.unet.zero_grad()
        settings = config(preserve_preferred=preserve, normaliser="zero")
        batch = draw(moved, data, settings)
        loss, terms = compute_loss(moved.unet, tiny_pipeline.unet, batch, settings, Running())
        loss.backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in moved.unet.parameters()]))
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert 0 < terms["preserving_scale"] < 1
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.05)


@pytest.mark.parametrize("objective", ["popalign", "set-dpo", "diffusion-dpo", "diffusion-kto", "sft"])
def test_every_objective_learns(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path, objective: str) -> None:
    log = run(tiny_pipeline, data, tmp_path, **SETTINGS | {"objective": objective, "beta": 10})
    losses = [row["value"] for row in log if row["name"] == "loss"]
    assert sum(losses[-3:]) < sum(losses[:3])
