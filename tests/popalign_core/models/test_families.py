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
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from popalign_core.config import CADSConfig, SamplingConfig
from popalign_core.errors import ConfigError, InputError
from popalign_core.models.denoisers import FLUX, FLUX_DEV, SD1, SD3, SDXL, family_of, find_denoiser
from popalign_core.models.embeddings import PromptEmbeddings, embed_prompts
from popalign_core.sampling.edits import Edits
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
    "flux-dev": (FLUX_DEV, FluxPipeline),
    "flux-schnell": (FLUX, FluxPipeline),
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
    torch.testing.assert_close(prompts.pooled_prompt_embeds, found[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(empty.pooled_prompt_embeds[0], found[3][0], rtol=0, atol=1e-5)
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


def test_flux_embeddings_equal_the_stock_pipelines(load_family: Callable[[str], Any]) -> None:
    pipeline = load_family("flux-dev")
    prompts, empty = embed(pipeline)
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt([*TEXTS, ""])
    torch.testing.assert_close(torch.cat([prompts.prompt_embeds, empty.prompt_embeds]), embeds, rtol=0, atol=5e-5)
    both = torch.cat([prompts.pooled_prompt_embeds, empty.pooled_prompt_embeds])
    torch.testing.assert_close(both, pooled, rtol=0, atol=1e-5)
    # T5's states alone, and CLIP's pooled one
    assert (prompts.prompt_embeds.shape, prompts.pooled_prompt_embeds.shape) == ((2, 512, 64), (2, 32))
    assert float((embeds[0] - embeds[1]).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("name", "guidance_scale", "stock"),
    [
        ("flux-dev", 3.5, {"guidance_scale": 3.5}),
        ("flux-dev", 1.0, {"guidance_scale": 1.0}),
        ("flux-schnell", 1.0, {"guidance_scale": 0.0}),
        ("flux-schnell", 3.0, {"true_cfg_scale": 3.0, "negative_prompt": [""] * 3}),
    ],
)
def test_flux_samples_equal_the_stock_pipeline(
    load_family: Callable[[str], Any], name: str, guidance_scale: float, stock: dict[str, Any]
) -> None:
    """From prompts and seeds on: the same noise, the same levels, the same pictures."""
    pipeline = load_family(name)
    config = SamplingConfig(n_steps=4, guidance_scale=guidance_scale, scheduler="euler", width=64, height=96)
    prompts, empty = embed(pipeline)
    pixels, latents = sample_images(pipeline, prompts, empty, ROWS, SEEDS, config)

    def draw(output_type: str) -> Any:
        return pipeline(
            [TEXTS[row] for row in ROWS],
            num_inference_steps=4,
            width=64,
            height=96,
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            output_type=output_type,
            **stock,
        ).images

    expected = FluxPipeline._unpack_latents(draw("latent"), 96, 64, 8)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
    assert latents.shape == (3, 16, 12, 8)
    assert np.abs(pixels / 255 - draw("np")).max() <= 1 / 255


@pytest.mark.parametrize(("name", "guidance_scale"), [("flux-dev", 3.5), ("flux-schnell", 3.0)])
def test_flux_does_not_depend_on_the_batch(load_family: Callable[[str], Any], name: str, guidance_scale: float) -> None:
    pipeline = load_family(name)
    prompts, empty = embed(pipeline)
    config = SamplingConfig(n_steps=3, guidance_scale=guidance_scale, scheduler="euler", cads=CADSConfig())
    pixels, latents = sample_images(pipeline, prompts, empty, [0, 1, 0, 1], [7, 8, 9, 10], config)
    for row in range(4):
        alone_pixels, alone = sample_images(pipeline, prompts, empty, [row % 2], [7 + row], config)
        torch.testing.assert_close(alone[0], latents[row], rtol=0, atol=1e-4)
        assert int(np.abs(alone_pixels[0].astype(int) - pixels[row].astype(int)).max()) <= 1
    # the condition counts for more than rounding, and so does annealing it
    plain = config.model_copy(update={"cads": None})
    for other, rows in ((config, [1, 0, 1, 0]), (plain, [0, 1, 0, 1])):
        changed = sample_images(pipeline, prompts, empty, rows, [7, 8, 9, 10], other)[1]
        assert float((changed - latents).abs().amax((1, 2, 3)).min()) > 1e-2


def test_a_distilled_model_is_told_its_guidance_in_one_forward(load_family: Callable[[str], Any]) -> None:
    pipeline = load_family("flux-dev")
    seen: list[tuple[list[float], list[float]]] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda module, args, given: seen.append((given["guidance"].tolist(), given["timestep"].tolist())),
        with_kwargs=True,
    )
    prompts, empty = embed(pipeline)
    config = SamplingConfig(n_steps=2, guidance_scale=3.5, scheduler="euler")
    sample_images(pipeline, prompts, empty, [0, 1], [1, 2], config)
    # 4 x 4 tokens: mu = .5 + .65 (16 - 256) / (4096 - 256) = .459375; level 1/2 becomes e^mu / (e^mu + 1) = .612866
    assert [guidance for guidance, _ in seen] == [[3.5, 3.5]] * 2
    assert [time for _, times in seen for time in times] == pytest.approx([1, 1, 0.612866, 0.612866], abs=1e-6)


@pytest.mark.parametrize("setting", [{"dynamic_cfg": {}}, {"guidance_interval": (0.0, 5.0)}, {"guidance_rescale": 0.7}])
def test_what_weighs_two_halves_is_refused_of_a_distilled_model(
    load_family: Callable[[str], Any], setting: dict[str, Any]
) -> None:
    config = SamplingConfig.model_validate({"n_steps": 2, "guidance_scale": 3.5, "scheduler": "euler", **setting})
    pipeline = load_family("flux-dev")
    prompts, empty = embed(pipeline)
    with pytest.raises(ConfigError, match=rf"^sampling\.{next(iter(setting))} cannot be used with FLUX\.1-dev"):
        sample_images(pipeline, prompts, empty, [0], [1], config)
    schnell = load_family("flux-schnell")
    latents = sample_images(schnell, prompts, empty, [0], [1], config)[1]
    plain = SamplingConfig(n_steps=2, guidance_scale=3.5, scheduler="euler")
    assert not torch.equal(latents, sample_images(schnell, prompts, empty, [0], [1], plain)[1])


def test_fair_diffusion_steers_a_distilled_model(load_family: Callable[[str], Any]) -> None:
    """The unconditional forward is taken, for the concepts to be compared with; the picture's weight is still 1."""
    pipeline = load_family("flux-dev")
    prompts, empty = embed(pipeline)
    settings = {"n_steps": 3, "guidance_scale": 3.5, "scheduler": "euler"}
    steered = SamplingConfig.model_validate(settings | {"fair_diffusion": {"threshold": 0.5, "warmup": 0.0}})
    no_edit, edit = (Edits(prompts, torch.tensor([[1]]), torch.tensor([[sign]])) for sign in (0, 1))
    plain = sample_images(pipeline, prompts, empty, [0], [1], SamplingConfig.model_validate(settings))[1]
    assert torch.equal(sample_images(pipeline, prompts, empty, [0], [1], steered, edits=no_edit)[1], plain)
    latents = sample_images(pipeline, prompts, empty, [0], [1], steered, edits=edit)[1]
    assert float((latents - plain).abs().max()) > 1e-2


@pytest.mark.parametrize(("name", "what"), [("flux-dev", r"FLUX\.1-dev"), ("sd3", "Stable Diffusion 3")])
def test_a_size_that_patches_do_not_fill_is_refused(load_family: Callable[[str], Any], name: str, what: str) -> None:
    pipeline = load_family(name)
    prompts, empty = embed(pipeline)
    with pytest.raises(InputError, match=rf"72 x 64 px does not fit {what}: .*; give multiples of 16 px"):
        sample_images(pipeline, prompts, empty, [0], [1], SamplingConfig(scheduler="euler", width=72))


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


@pytest.mark.parametrize("name", ["sd3", "flux-schnell"])
def test_a_flow_model_takes_eulers_sampler_only(load_family: Callable[[str], Any], name: str) -> None:
    pipeline = load_family(name)
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
