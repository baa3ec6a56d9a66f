"""Samplers by name: the right class on the model's noise schedule; time and noise level; starting from a picture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    LCMScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from popalign_core.config import SamplingConfig, SDEditConfig
from popalign_core.errors import ConfigError, InputError
from popalign_core.models.embeddings import embed_prompts
from popalign_core.sampling.engine import initial_noise, sample_images
from popalign_core.sampling.schedulers import diffusion_time, level_shift, make_scheduler, noise_level

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # the stock calls'

NAMES = ["dpmsolver++", "ddim", "euler", "euler-ancestral", "lcm"]


def test_diffusers_names_are_understood() -> None:
    for name, ours in (("EulerDiscreteScheduler", "euler"), ("LCMScheduler", "lcm"), ("DDIMScheduler", "ddim")):
        assert SamplingConfig.model_validate({"scheduler": name, "n_steps": 4}).scheduler == ours
    with pytest.raises(ValueError, match="scheduler"):
        SamplingConfig.model_validate({"scheduler": "HeunDiscreteScheduler"})


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_schedule_is_the_models(tiny_pipeline: Any, name: str) -> None:
    config = make_scheduler(tiny_pipeline.scheduler, name).config
    assert (config.prediction_type, config.beta_schedule) == ("v_prediction", "scaled_linear")
    assert make_scheduler(tiny_pipeline.scheduler, name, "trailing").config.timestep_spacing == "trailing"


def test_lightning_samples_at_the_timesteps_it_was_distilled_at(tiny_pipeline: Any) -> None:
    scheduler = make_scheduler(tiny_pipeline.scheduler, "euler", "trailing")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


def test_noise_levels_are_those_that_euler_steps_through(load_family: Callable[[str], Any]) -> None:
    scheduler = EulerDiscreteScheduler.from_config(load_family("sdxl").scheduler.config)
    scheduler.set_timesteps(7)
    found = [noise_level(scheduler, timestep) for timestep in scheduler.timesteps]
    assert found == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-3)
    assert diffusion_time(scheduler, torch.tensor(981)) == 0.981


def test_a_flows_noise_level_is_the_ratio_of_its_parts() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    assert noise_level(scheduler, torch.tensor(750.0)) == pytest.approx(3.0)  # .75 / .25
    assert noise_level(scheduler, torch.tensor(1000.0)) == float("inf")
    with pytest.raises(ConfigError, match="timestep_spacing is 'trailing'; a flow model has none"):
        make_scheduler(scheduler, "euler", "trailing")


@pytest.mark.parametrize(
    "changes", [{"scheduler": "lcm"}, {"scheduler": "euler-ancestral"}, {"scheduler": "ddim", "eta": 1.0}]
)
def test_samplers_that_draw_noise_draw_each_images_own(tiny_pipeline: Any, changes: dict[str, Any]) -> None:
    config = SamplingConfig.model_validate({"n_steps": 4, "guidance_scale": 1.5, **changes})
    embeddings = embed_prompts(tiny_pipeline, ["a nurse", ""], 2)
    prompts, empty = embeddings.rows([0]), embeddings.rows([1])
    torch.manual_seed(1)
    whole = sample_images(tiny_pipeline, prompts, empty, [0] * 4, [1, 2, 3, 4], config)[1]
    torch.manual_seed(2)  # the global generator has no say
    assert torch.equal(sample_images(tiny_pipeline, prompts, empty, [0] * 4, [1, 2, 3, 4], config)[1], whole)
    for row in range(4):
        alone = sample_images(tiny_pipeline, prompts, empty, [0], [row + 1], config)[1]
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-4)
    plain = SamplingConfig.model_validate({"n_steps": 4, "guidance_scale": 1.5, "scheduler": "ddim"})
    assert not torch.allclose(sample_images(tiny_pipeline, prompts, empty, [0], [1], plain)[1][0], whole[0], atol=1e-2)


def test_lcm_equals_the_stock_pipeline(load_family: Callable[[str], Any]) -> None:
    pipeline = load_family("sdxl")
    config = SamplingConfig(n_steps=4, guidance_scale=2.0, scheduler="lcm")
    embeddings = embed_prompts(pipeline, ["a nurse", ""], 2)
    latents = sample_images(pipeline, embeddings.rows([0]), embeddings.rows([1]), [0], [3], config)[1]
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    generator = torch.Generator().manual_seed(3)
    shape = initial_noise(pipeline, [3], config).shape
    expected = pipeline(
        prompt_embeds=embeddings.prompt_embeds[:1],
        pooled_prompt_embeds=embeddings.pooled_prompt_embeds[:1],
        negative_prompt_embeds=embeddings.prompt_embeds[1:],
        negative_pooled_prompt_embeds=embeddings.pooled_prompt_embeds[1:],
        num_inference_steps=4,
        guidance_scale=2.0,
        width=64,
        height=64,
        latents=torch.randn(shape[1:], generator=generator)[None],
        generator=generator,
        output_type="latent",
    ).images
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "scheduler", "stock"),
    [
        ("sdxl", "euler", StableDiffusionXLImg2ImgPipeline),
        ("sdxl", "ddim", StableDiffusionXLImg2ImgPipeline),
        ("sdxl", "dpmsolver++", StableDiffusionXLImg2ImgPipeline),
        ("sd3", "euler", StableDiffusion3Img2ImgPipeline),
        ("flux-dev", "euler", FluxImg2ImgPipeline),
    ],
)
def test_sdedit_equals_the_stock_image_to_image_pipeline(
    load_family: Callable[[str], Any], name: str, scheduler: str, stock: Any
) -> None:
    """The stock pipeline takes latents in place of a picture, and one generator an image for its noise."""
    pipeline = load_family(name)
    sdedit = SDEditConfig(folder="layouts", strength=0.6)
    config = SamplingConfig.model_validate(
        {"n_steps": 5, "guidance_scale": 3.0, "scheduler": scheduler, "sdedit": sdedit}
    )
    embeddings = embed_prompts(pipeline, ["a nurse", ""], 2)
    prompts, empty, seeds = embeddings.rows([0]), embeddings.rows([1]), [5, 6]
    shape = initial_noise(pipeline, seeds, config).shape
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    latents = sample_images(pipeline, prompts, empty, [0, 0], seeds, config, start_latents=start)[1]

    other = stock(
        **{key: getattr(pipeline, key) for key in stock._get_signature_keys(stock)[0] if hasattr(pipeline, key)}
    )
    other.set_progress_bar_config(disable=True)
    other.scheduler = make_scheduler(pipeline.scheduler, scheduler)
    size = {} if name == "sdxl" else {"width": 64, "height": 64}
    expected = other(
        prompt_embeds=prompts.prompt_embeds.expand(2, -1, -1),
        pooled_prompt_embeds=prompts.pooled_prompt_embeds.expand(2, -1),
        negative_prompt_embeds=empty.prompt_embeds.expand(2, -1, -1),
        negative_pooled_prompt_embeds=empty.pooled_prompt_embeds.expand(2, -1),
        image=start,
        strength=0.6,
        num_inference_steps=5,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
        **size,
    ).images
    if name == "flux-dev":
        expected = FluxImg2ImgPipeline._unpack_latents(expected, 64, 64, 8)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "mu"),
    # two latents a side make a token; a straight line through (256, .5) and (4096, 1.15): 1024 tokens are a fifth of it
    [(32, 32, 0.5), (128, 128, 1.15), (64, 64, 0.5 + 0.65 / 5), (32, 128, 0.5 + 0.65 / 5), (256, 128, 1.8433333)],
)
def test_the_level_shift_of_a_size_by_hand(height: int, width: int, mu: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    assert level_shift(scheduler, height, width) == pytest.approx(mu, abs=1e-6)


def test_what_is_asked_for_and_what_is_given_must_be_the_same(tiny_pipeline: Any) -> None:
    embeddings = embed_prompts(tiny_pipeline, ["a nurse", ""], 2)
    prompts, empty = embeddings.rows([0]), embeddings.rows([1])
    sdedit = SamplingConfig(n_steps=4, sdedit=SDEditConfig(folder="layouts"))
    with pytest.raises(InputError, match=r"sampling\.sdedit is set, but nothing is given"):
        sample_images(tiny_pipeline, prompts, empty, [0], [1], sdedit)
    with pytest.raises(InputError, match=r"sampling\.sdedit is not set, but something is given"):
        sample_images(tiny_pipeline, prompts, empty, [0], [1], SamplingConfig(), start_latents=torch.zeros(1, 4, 8, 8))
    with pytest.raises(InputError, match="2 given for 1 images"):
        sample_images(tiny_pipeline, prompts, empty, [0], [1], sdedit, start_latents=torch.zeros(2, 4, 8, 8))
