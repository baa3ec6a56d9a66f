"""Retention: under captions that alignment must leave alone the policy stays where the reference is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import draw, run

from popalign_core.errors import InputError
from popalign_core.models.denoisers import SDXL
from popalign_core.training.batch import Batch
from popalign_core.training.data import PreferenceData
from popalign_core.training.losses import retention_loss
from popalign_core.training.objective import forward


def train(pipeline: Any, data: PreferenceData, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    return run(pipeline, data, folder, **{"n_steps": 16, "empty_caption_rate": 0.1, "checkpoint_every": 16, **changes})


def predictions(pipeline: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return forward(pipeline.unet, SDXL, batch)


def test_is_the_mean_square_between_policy_and_reference() -> None:
    policy = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]], requires_grad=True)
    reference = torch.tensor([[[[0.0, 1.0]]], [[[0.0, 2.0]]]], requires_grad=True)
    losses = retention_loss(policy, reference)
    assert losses.tolist() == [2.5, 2.0]
    losses.sum().backward()
    assert policy.grad is not None
    assert reference.grad is None


def pipeline_alphas(pipeline: Any, batch: Batch) -> Tensor:
    alphas: Tensor = pipeline.scheduler.alphas_cumprod[batch.timesteps][:, None, None, None]
    return alphas


def test_retained_images_join_the_batch_under_their_own_captions(tiny_pipeline: Any, data: PreferenceData) -> None:
    plain = draw(tiny_pipeline, data, n_pairs=32, empty_caption_rate=1)
    batch = draw(tiny_pipeline, data, n_pairs=32, empty_caption_rate=1, retention=1)
    for name in ("noisy_latents", "timesteps", "prompt_embeds", "pooled_prompt_embeds", "time_ids"):
        assert torch.equal(getattr(batch, name)[:64], getattr(plain, name)), name
    assert torch.equal(batch.target[:64], plain.target)
    assert torch.equal(batch.preferred, plain.preferred)
    assert torch.equal(batch.timesteps[64:], batch.timesteps[:32])
    # captions 2 and 3 are the retained ones; the caption is what is held, so none is dropped
    own = [int((data.prompt_embeds == embeds).all(dim=(1, 2)).nonzero()) for embeds in batch.prompt_embeds[64:]]
    assert set(own) == {2, 3}
    assert torch.equal(batch.pooled_prompt_embeds[64:], data.pooled_prompt_embeds[own])
    # z_t = a z + s eps, v = a eps - s z  =>  eps = s z_t + a v, z = (z_t - s eps) / a
    alphas = pipeline_alphas(tiny_pipeline, batch)[:32]
    noise = (1 - alphas).sqrt() * batch.noisy_latents[:32] + alphas.sqrt() * batch.target[:32]
    latents = (batch.noisy_latents[64:] - (1 - alphas).sqrt() * noise) / alphas.sqrt()
    easy = alphas.flatten() > 0.1
    for latent, caption in zip(latents[easy], torch.tensor(own)[easy], strict=True):
        distances = (data.retained_latents - latent).square().mean((1, 2, 3))
        nearest = int(distances.argmin())
        assert distances[nearest] < 1e-6
        assert data.retained_prompt_index[nearest] == caption


@pytest.mark.parametrize("rank", [0, 4])
def test_holds_the_retained_captions_and_still_learns(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, rank: int
) -> None:
    drift, loss = {}, {}
    for weight in (0.0, 50.0):
        pipeline = make_pipeline()
        batch = draw(pipeline, data, n_pairs=32, retention=1)
        before = predictions(pipeline, batch)
        log = train(
            pipeline, data, tmp_path / f"{weight:g}", retention=weight, lora_rank=rank, normaliser="zero",
            learning_rate=1e-2 if rank else 1e-3,
        )  # fmt: skip
        moved = retention_loss(predictions(pipeline, batch), before)
        drift[weight] = float(moved[64:].mean())
        logged = {row["name"]: row["value"] for row in log if row["step"] == 16}
        assert ("retention" in logged) == (weight > 0)
        loss[weight] = logged["loss"] - weight * logged.get("retention", 0.0)
    assert 0 < drift[50.0] < 0.5 * drift[0.0]
    assert loss[50.0] < 0.9 * torch.tensor(2.0).log()


def test_sft_can_retain_too(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    log = train(tiny_pipeline, data, tmp_path, objective="sft", retention=5)
    retained = [row["value"] for row in log if row["name"] == "retention"]
    assert retained[0] == pytest.approx(0, abs=1e-10)
    assert retained[-1] > 0


def test_nothing_to_retain_is_fine_until_retention_is_asked_for(
    tiny_pipeline: Any, data: PreferenceData, tmp_path: Path
) -> None:
    bare = replace(
        data,
        retained_latents=data.retained_latents[:0],
        retained_prompt_index=data.retained_prompt_index[:0],
        retained_generic=data.retained_generic[:0],
    )
    assert train(tiny_pipeline, bare, tmp_path / "a", n_steps=1)
    with pytest.raises(InputError, match="retention is 2, but the data holds no retained image"):
        train(tiny_pipeline, bare, tmp_path / "b", n_steps=1, retention=2)
