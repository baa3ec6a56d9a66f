from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from training_runs import TIME_IDS, draw, run

from popalign_core.errors import ConfigError, InputError
from popalign_core.training.data import PreferenceData, draw_groups


def test_pairs_share_noise_timestep_and_caption(tiny_pipeline: Any, data: PreferenceData) -> None:
    batch = draw(tiny_pipeline, data)
    alphas = tiny_pipeline.scheduler.alphas_cumprod[batch.timesteps][:, None, None, None]
    # z_t = a z + s eps, v = a eps - s z  =>  eps = s z_t + a v, z = a z_t - s v   (a^2 + s^2 = 1)
    noise = (1 - alphas).sqrt() * batch.noisy_latents + alphas.sqrt() * batch.target
    latents = alphas.sqrt() * batch.noisy_latents - (1 - alphas).sqrt() * batch.target
    torch.testing.assert_close(noise[:64], noise[64:], rtol=0, atol=1e-5)
    assert torch.equal(batch.timesteps[:64], batch.timesteps[64:])
    assert torch.equal(batch.prompt_embeds[:64], batch.prompt_embeds[64:])
    assert torch.equal(batch.pooled_prompt_embeds[:64], batch.pooled_prompt_embeds[64:])
    # the preferred half lies around +1, the dispreferred around -1
    assert bool((latents[:64].mean((1, 2, 3)) > 0.5).all())
    assert bool((latents[64:].mean((1, 2, 3)) < -0.5).all())
    assert batch.preferred.tolist() == [True] * 64 + [False] * 64
    assert torch.equal(batch.time_ids, TIME_IDS.expand(128, 6))


def test_all_images_of_a_prompt_share_noise_timestep_and_caption(tiny_pipeline: Any, data: PreferenceData) -> None:
    """Two prompts of four images, in two blocks of four rows, of which a part is one prompt whole; not so retained."""
    grouped = replace(data, advantages=torch.arange(12) / 12)
    changes = {"objective": "population-policy", "n_pairs": 4, "pairs_per_set": 2, "retention": 1}
    batch = draw(tiny_pipeline, grouped, **changes)
    assert len(batch.timesteps) == 12
    for number in (0, 1):
        part = batch.part(number, 2)
        assert len(set(part.set_index.tolist())) == 1
        assert len(set(part.timesteps[:4].tolist())) == 1
        assert len(set(part.wanted.tolist())) == 4  # no image twice
        for embeds in part.prompt_embeds[1:4]:
            assert torch.equal(embeds, part.prompt_embeds[0])
        alphas = tiny_pipeline.scheduler.alphas_cumprod[part.timesteps][:, None, None, None]
        noise = (1 - alphas).sqrt() * part.noisy_latents + alphas.sqrt() * part.target
        torch.testing.assert_close(noise[1:4], noise[:1].expand(3, -1, -1, -1), rtol=0, atol=1e-5)
        assert float((noise[4] - noise[5]).abs().max()) > 0.1
    assert set(batch.set_index.tolist()) == {0, 1}  # each prompt once before one comes again


def test_a_group_with_too_few_images_is_refused(data: PreferenceData) -> None:
    grouped = replace(data, advantages=torch.zeros(12))
    with pytest.raises(InputError, match=r"group [01] has 6 images, fewer than the 8 that pairs_per_set 4 takes"):
        draw_groups(grouped, 8, torch.Generator().manual_seed(0), pairs_per_set=4)


def test_epsilon_models_learn_the_noise(tiny_pipeline: Any, data: PreferenceData) -> None:
    velocity = draw(tiny_pipeline, data)
    # Euler's own add_noise works in sigma space: only its noise schedule may be read
    tiny_pipeline.scheduler = EulerDiscreteScheduler.from_config(
        tiny_pipeline.scheduler.config, prediction_type="epsilon"
    )
    batch = draw(tiny_pipeline, data)
    assert torch.equal(batch.noisy_latents, velocity.noisy_latents)
    assert torch.equal(batch.target[:64], batch.target[64:])
    assert float(batch.target.std()) == pytest.approx(1, abs=0.03)


def test_captions_are_dropped_at_their_rate(tiny_pipeline: Any, data: PreferenceData) -> None:
    def share(rate: float) -> float:
        batch = draw(tiny_pipeline, data, empty_caption_rate=rate)
        empty = (batch.prompt_embeds == data.empty_prompt_embeds).all(dim=(1, 2))
        assert torch.equal(empty, (batch.pooled_prompt_embeds == data.empty_pooled).all(dim=1))
        return float(empty.float().mean())

    assert share(0) == 0
    assert share(1) == 1
    assert 0.1 < share(0.25) < 0.4


def test_sft_sees_the_same_preferred_samples(tiny_pipeline: Any, data: PreferenceData) -> None:
    both, alone = draw(tiny_pipeline, data), draw(tiny_pipeline, data, objective="sft")
    assert torch.equal(alone.noisy_latents, both.noisy_latents[:64])
    assert bool(alone.preferred.all())


def test_timesteps_start_where_they_are_told(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    assert int(draw(tiny_pipeline, data).timesteps.min()) < 200
    assert int(draw(tiny_pipeline, data, min_timestep=800).timesteps.min()) >= 800
    tiny_pipeline.scheduler.register_to_config(num_train_timesteps=500)
    with pytest.raises(ConfigError, match="min_timestep reaches 500, the model has the timesteps 0 to 499"):
        run(tiny_pipeline, data, tmp_path, min_timestep=500)
