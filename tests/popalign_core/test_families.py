"""Sampling from every model family: our engine against the stock pipelines."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from popalign_core.config import SamplingConfig
from popalign_core.denoisers import SD1, SD3, SDXL, family_of, find_denoiser
from popalign_core.errors import ConfigError
from popalign_core.sampling.embeddings import PromptEmbeddings, embed_prompts
from popalign_core.sampling.engine import initial_noise, sample_images, time_ids

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler

TEXTS = ["a nurse", "a pilot"]
ROWS, SEEDS = [0, 1, 1], [3, 2**63 - 1, 5]
FAMILIES = {
    "sdxl": (SDXL, StableDiffusionXLPipeline),
    "sdxl-v": (SDXL, StableDiffusionXLPipeline),
    "sdxl-turbo": (SDXL, StableDiffusionXLPipeline),
    "sd15": (SD1, StableDiffusionPipeline),
    "sd3": (SD3, StableDiffusion3Pipeline),
    "sd3-without-t5": (SD3, StableDiffusion3Pipeline),
}


def embed(pipeline: Any) -> tuple[PromptEmbeddings, PromptEmbeddings]:
    """Of `TEXTS`, and of the empty text."""
    both = embed_prompts(pipeline, [*TEXTS, ""], batch_size=2)
    embeds, pooled = both.prompt_embeds, both.pooled_prompt_embeds
    return PromptEmbeddings(embeds[:-1], pooled[:-1]), PromptEmbeddings(embeds[-1:], pooled[-1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_loads_and_is_recognised(load_family: Callable[[str], Any], name: str) -> None:
    pipeline = load_family(name)
    family, stock = FAMILIES[name]
    assert type(pipeline) is stock
    assert family_of(find_denoiser(pipeline)) is family
    assert find_denoiser(pipeline) is getattr(pipeline, family.component)


@pytest.mark.parametrize("name", ["sdxl", "sd15", "sd3", "sd3-without-t5"])
def test_embeddings_equal_the_stock_pipelines(load_family: Callable[[str], Any], name: str) -> None:
    pipeline = load_family(name)
    prompts, empty = embed(pipeline)
    more = {"prompt_2": None, "prompt_3": None} if name.startswith("sd3") else {}
    found = pipeline.encode_prompt(
        TEXTS, **more, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=[""] * 2
    )
    torch.testing.assert_close(prompts.prompt_embeds, found[0], rtol=0, atol=5e-5)
    torch.testing.assert_close(empty.prompt_embeds[0], found[1][0], rtol=0, atol=5e-5)
    # two CLIPs of 16 tokens, and T5's 256 states or as many zeros
    assert prompts.prompt_embeds.shape == (2, *{"sdxl": (16, 64), "sd15": (16, 32)}.get(name, (272, 64)))
    assert float((prompts.prompt_embeds[0] - prompts.prompt_embeds[1]).abs().max()) > 0.1
    if name == "sd15":
        assert prompts.pooled_prompt_embeds.shape == (2, 0)
        return
    torch.testing.assert_close(prompts.pooled_prompt_embeds, found[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(empty.pooled_prompt_embeds[0], found[3][0], rtol=0, atol=1e-6)
    assert bool(prompts.prompt_embeds[:, 16:].any()) is (name == "sd3")


@pytest.mark.parametrize(
    ("name", "scheduler", "guidance_scale", "stock_scheduler"),
    [
        ("sdxl", "euler", 1.0, EulerDiscreteScheduler),
        ("sdxl", "euler", 5.0, EulerDiscreteScheduler),
        ("sdxl-v", "dpmsolver++", 5.0, DPMSolverMultistepScheduler),
        ("sdxl-turbo", "euler", 1.0, EulerDiscreteScheduler),
        ("sd15", "ddim", 1.0, DDIMScheduler),
        ("sd15", "ddim", 7.5, DDIMScheduler),
        ("sd15", "dpmsolver++", 7.5, DPMSolverMultistepScheduler),
        ("sd3", "euler", 1.0, FlowMatchEulerDiscreteScheduler),
        ("sd3", "euler", 7.0, FlowMatchEulerDiscreteScheduler),
        ("sd3-without-t5", "euler", 7.0, FlowMatchEulerDiscreteScheduler),
    ],
)
def test_samples_equal_the_stock_pipelines(
    load_family: Callable[[str], Any], name: str, scheduler: str, guidance_scale: float, stock_scheduler: Any
) -> None:
    pipeline = load_family(name)
    config = SamplingConfig.model_validate(
        {"n_steps": 4, "guidance_scale": guidance_scale, "scheduler": scheduler, "width": 64, "height": 96}
    )
    prompts, empty = embed(pipeline)
    pixels, latents = sample_images(pipeline, prompts, empty, ROWS, SEEDS, config)

    more = {"clip_sample": False} if stock_scheduler is DDIMScheduler else {}
    pipeline.scheduler = stock_scheduler.from_config(pipeline.scheduler.config, **more)
    stock = {
        "prompt_embeds": prompts.prompt_embeds[ROWS],
        "negative_prompt_embeds": empty.prompt_embeds.expand(3, -1, -1),
        "guidance_scale": guidance_scale,
        "num_inference_steps": 4,
        "width": 64,
        "height": 96,
    }
    if FAMILIES[name][0].has_pooled:
        stock["pooled_prompt_embeds"] = prompts.pooled_prompt_embeds[ROWS]
        stock["negative_pooled_prompt_embeds"] = empty.pooled_prompt_embeds.expand(3, -1)
    noise = initial_noise(pipeline, SEEDS, config)
    expected = pipeline(**stock, latents=noise.clone(), output_type="latent").images
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
    assert latents.shape == (3, 16 if name.startswith("sd3") else 4, 12, 8)
    expected_pixels = pipeline(**stock, latents=noise.clone(), output_type="np").images
    assert np.abs(pixels / 255 - expected_pixels).max() <= 1 / 255


def test_turbo_samples_at_the_timesteps_it_is_trained_on(load_family: Callable[[str], Any]) -> None:
    pipeline = load_family("sdxl-turbo")
    seen: list[float] = []
    pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(kwargs["timestep"].tolist()), with_kwargs=True
    )
    prompts, empty = embed(pipeline)
    config = SamplingConfig(n_steps=4, guidance_scale=1.0, scheduler="euler")
    sample_images(pipeline, prompts, empty, [0], [1], config)
    # one row each: no unconditional half without guidance
    assert seen == [999, 749, 499, 249]


def test_time_ids_equal_the_stock_pipelines(load_family: Callable[[str], Any]) -> None:
    pipeline = load_family("sdxl")
    expected = pipeline._get_add_time_ids(
        (96, 64), (0, 0), (96, 64), dtype=torch.float32, text_encoder_projection_dim=32
    )
    assert torch.equal(time_ids(SamplingConfig(width=64, height=96)), expected)


def test_a_flow_model_takes_eulers_sampler_only(load_family: Callable[[str], Any]) -> None:
    pipeline = load_family("sd3")
    prompts, empty = embed(pipeline)
    with pytest.raises(ConfigError, match=r"sampling\.scheduler is 'ddim', but this is a flow model: choose euler"):
        sample_images(pipeline, prompts, empty, [0], [1], SamplingConfig(scheduler="ddim"))


def test_unknown_denoisers_are_named(load_family: Callable[[str], Any]) -> None:
    pipeline = load_family("sdxl")
    with pytest.raises(ConfigError, match="AutoencoderTiny is of no family known here"):
        family_of(pipeline.vae)
    pipeline.unet.register_to_config(addition_embed_type="image")
    with pytest.raises(ConfigError, match="UNet2DConditionModel with addition_embed_type 'image' is of no family"):
        family_of(pipeline.unet)
    with pytest.raises(ConfigError, match="SimpleNamespace has neither unet nor transformer"):
        find_denoiser(SimpleNamespace(vae=pipeline.vae, unet=None))
