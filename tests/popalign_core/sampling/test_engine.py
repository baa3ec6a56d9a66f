from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

from popalign_core.config import SamplingConfig
from popalign_core.errors import InputError
from popalign_core.models import vae as vae_module
from popalign_core.models.embeddings import PromptEmbeddings, embed_prompts
from popalign_core.models.vae import decode_latents, encode_pixels
from popalign_core.sampling import engine
from popalign_core.sampling.engine import sample_images
from popalign_core.sampling.schedulers import make_scheduler

CONFIG = SamplingConfig(n_steps=3, guidance_scale=2.5)
TEXTS = ["a nurse", "a pilot", ""]


@pytest.fixture
def embeddings(tiny_pipeline: Any) -> PromptEmbeddings:
    return embed_prompts(tiny_pipeline, TEXTS, batch_size=8)


def split(embeddings: PromptEmbeddings) -> tuple[PromptEmbeddings, PromptEmbeddings]:
    prompts = PromptEmbeddings(embeddings.prompt_embeds[:-1], embeddings.pooled_prompt_embeds[:-1])
    return prompts, PromptEmbeddings(embeddings.prompt_embeds[-1:], embeddings.pooled_prompt_embeds[-1:])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # the stock call's
@pytest.mark.parametrize("scheduler", ["dpmsolver++", "ddim", "euler"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_samples_equal_the_stock_pipeline(
    tiny_pipeline: Any, embeddings: PromptEmbeddings, scheduler: str, guidance_scale: float
) -> None:
    config = SamplingConfig.model_validate(
        {**CONFIG.model_dump(), "scheduler": scheduler, "guidance_scale": guidance_scale}
    )
    seeds, rows = [3, 2**63 - 1, 5], [0, 1, 1]
    prompts, empty = split(embeddings)
    pixels, latents = sample_images(tiny_pipeline, prompts, empty, rows, seeds, config)

    tiny_pipeline.scheduler = make_scheduler(tiny_pipeline.scheduler, scheduler)
    noise = engine.initial_noise(tiny_pipeline, seeds, config)
    stock = {
        "prompt_embeds": prompts.prompt_embeds[rows],
        "pooled_prompt_embeds": prompts.pooled_prompt_embeds[rows],
        "negative_prompt_embeds": empty.prompt_embeds.expand(3, -1, -1),
        "negative_pooled_prompt_embeds": empty.pooled_prompt_embeds.expand(3, -1),
        "guidance_scale": guidance_scale,
        "num_inference_steps": 3,
        "width": 64,
        "height": 64,
    }
    expected_latents = tiny_pipeline(**stock, latents=noise.clone(), output_type="latent").images
    expected_pixels = tiny_pipeline(**stock, latents=noise.clone(), output_type="np").images
    torch.testing.assert_close(latents, expected_latents, rtol=1e-5, atol=1e-5)
    assert pixels.shape == (3, 64, 64, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels / 255 - expected_pixels).max() <= 1 / 255
    assert latents.dtype == torch.float32
    assert latents.is_contiguous()


def test_embeddings_equal_the_stock_pipelines(tiny_pipeline: Any, embeddings: PromptEmbeddings) -> None:
    expected, empty, pooled, empty_pooled = tiny_pipeline.encode_prompt(TEXTS[:2], negative_prompt=["", ""])
    torch.testing.assert_close(embeddings.prompt_embeds[:2], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(embeddings.pooled_prompt_embeds[:2], pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(embeddings.prompt_embeds[2], empty[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(embeddings.pooled_prompt_embeds[2], empty_pooled[0], rtol=0, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1])


def test_empty_prompt_is_zeros_where_the_pipeline_says_so(tiny_pipeline: Any) -> None:
    tiny_pipeline.register_to_config(force_zeros_for_empty_prompt=True)
    embeddings = embed_prompts(tiny_pipeline, ["a nurse", ""], batch_size=1)
    assert int(embeddings.prompt_embeds[1].count_nonzero()) == 0
    assert int(embeddings.pooled_prompt_embeds[1].count_nonzero()) == 0
    assert int(embeddings.prompt_embeds[0].count_nonzero()) > 0


def test_same_batch_shape_gives_the_same_bits(tiny_pipeline: Any, embeddings: PromptEmbeddings) -> None:
    prompts, empty = split(embeddings)
    torch.manual_seed(1)
    pixels, latents = sample_images(tiny_pipeline, prompts, empty, [0, 1, 0], [7, 8, 9], CONFIG)
    torch.manual_seed(2)  # the global generator has no say
    again_pixels, again = sample_images(tiny_pipeline, prompts, empty, [0, 1, 0], [7, 8, 9], CONFIG)
    assert torch.equal(latents, again)
    assert np.array_equal(pixels, again_pixels)
    assert not torch.equal(latents[0], latents[2])


def test_batch_size_and_neighbours_do_not_matter(tiny_pipeline: Any, embeddings: PromptEmbeddings) -> None:
    prompts, empty = split(embeddings)
    pixels, latents = sample_images(tiny_pipeline, prompts, empty, [0, 1, 0, 1], [7, 8, 9, 10], CONFIG)
    for row in range(4):
        alone_pixels, alone = sample_images(tiny_pipeline, prompts, empty, [row % 2], [7 + row], CONFIG)
        torch.testing.assert_close(alone[0], latents[row], rtol=0, atol=1e-4)
        assert int(np.abs(alone_pixels[0].astype(int) - pixels[row].astype(int)).max()) <= 1


def test_scheduler_keeps_noise_schedule_and_prediction_type(tiny_pipeline: Any) -> None:
    for name in ("dpmsolver++", "ddim", "euler"):
        scheduler = make_scheduler(tiny_pipeline.scheduler, name)
        assert scheduler.config.prediction_type == "v_prediction"
        assert scheduler.config.beta_schedule == "scaled_linear"
    # from a config that says nothing of clip_sample, as Euler's and DPM-Solver's do
    silent = DPMSolverMultistepScheduler(prediction_type="v_prediction")
    assert make_scheduler(silent, "ddim").config.clip_sample is False


def test_decoding_leaves_the_scaled_space(tiny_pipeline: Any) -> None:
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    # scaling_factor is 0.5: the VAE must see twice the latents
    raw = tiny_pipeline.vae.decode(latents * 2).sample / 2 + 0.5
    expected = (raw.detach().clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    assert np.array_equal(decode_latents(tiny_pipeline.vae, latents), expected)


def test_pictures_that_are_not_finite_are_refused(tiny_pipeline: Any, embeddings: PromptEmbeddings) -> None:
    with torch.no_grad():
        tiny_pipeline.unet.conv_out.bias[0] = float("nan")
    prompts, empty = split(embeddings)
    with pytest.raises(InputError, match=r"2 of 2 images are not finite .*weights are damaged: restore them$"):
        sample_images(tiny_pipeline, prompts, empty, [0, 1], [3, 4], CONFIG)


def test_half_precision_may_be_why_pictures_are_not_finite(tiny_pipeline: Any) -> None:
    vae = tiny_pipeline.vae.to(torch.float16)
    latents = torch.full((1, 4, 8, 8), float("nan"), dtype=torch.float16)
    with pytest.raises(InputError, match=r"or too large for torch\.float16: .*set model\.dtype to bfloat16 or float32"):
        decode_latents(vae, latents)


def test_decoding_in_chunks_changes_nothing(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    whole = decode_latents(tiny_pipeline.vae, latents).astype(int)
    monkeypatch.setattr(vae_module, "MAX_DECODED_PIXELS", 64 * 64 * 2)
    assert int(np.abs(decode_latents(tiny_pipeline.vae, latents).astype(int) - whole).max()) <= 1


@pytest.fixture
def pixels() -> Any:
    """[3, 32, 48, 3] uint8."""
    return np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)


def kl_vae(**options: Any) -> AutoencoderKL:
    """Random weights; 4 x 4 px a latent, and whatever of scale, shift, mean and deviation is asked for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
        return AutoencoderKL(
            block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=2, **kinds, **options
        ).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"scaling_factor": 0.13025},
        {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        {"scaling_factor": 0.5, "latents_mean": (0.5, -2.0), "latents_std": (2.0, 0.25)},
        {"scaling_factor": 0.5, "shift_factor": 3.0, "latents_mean": (0.5, -2.0), "latents_std": (2.0, 0.25)},
    ],
)
def test_encoding_is_the_way_back_of_decoding(pixels: Any, options: dict[str, Any]) -> None:
    """What decoding hands to the VAE is what the VAE's encoder gave: the mode of its distribution."""
    vae = kl_vae(**options)
    latents = encode_pixels(vae, pixels)
    with torch.no_grad():
        expected = vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mode()
    assert latents.shape == (3, 2, 8, 12)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(vae_module._unscaled(vae, latents), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(latents, encode_pixels(vae, pixels))


def test_a_vae_without_a_distribution_is_encoded_with_too(tiny_pipeline: Any, pixels: Any) -> None:
    with torch.no_grad():
        expected = tiny_pipeline.vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).latents
    torch.testing.assert_close(encode_pixels(tiny_pipeline.vae, pixels), expected * 0.5)


def test_encoding_in_chunks_changes_nothing(pixels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = kl_vae()
    whole = encode_pixels(vae, pixels)
    monkeypatch.setattr(vae_module, "MAX_DECODED_PIXELS", 32 * 48 * 2)
    torch.testing.assert_close(encode_pixels(vae, pixels), whole)


def test_a_size_that_does_not_fit_the_vae_is_refused(pixels: Any) -> None:
    with pytest.raises(InputError, match="46 x 32 px is not a multiple of the VAE's factor 4"):
        encode_pixels(kl_vae(), pixels[:, :, :46])


def test_time_ids_are_height_first() -> None:
    assert engine.time_ids(SamplingConfig(width=64, height=128)).tolist() == [[128, 64, 0, 0, 128, 64]]


def test_bad_batches_say_what_is_wrong(tiny_pipeline: Any, embeddings: PromptEmbeddings) -> None:
    prompts, empty = split(embeddings)
    with pytest.raises(InputError, match="2 prompts and 1 seeds"):
        sample_images(tiny_pipeline, prompts, empty, [0, 1], [1], CONFIG)
    with pytest.raises(InputError, match=r"prompt_index \[2\] is outside the 2"):
        sample_images(tiny_pipeline, prompts, empty, [2], [1], CONFIG)
    with pytest.raises(InputError, match="unconditional holds 2"):
        sample_images(tiny_pipeline, prompts, prompts, [0], [1], CONFIG)
    with pytest.raises(InputError, match="list of texts is empty"):
        embed_prompts(tiny_pipeline, [], batch_size=2)
    with pytest.raises(InputError, match=r"\(2, 16, 64\) and \(1, 32\)"):
        PromptEmbeddings(prompts.prompt_embeds, empty.pooled_prompt_embeds)
