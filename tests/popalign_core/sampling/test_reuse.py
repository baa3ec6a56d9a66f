"""Kept features: a shallow UNet against the whole one, which blocks run when, and that nobody else notices."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import UNet2DConditionModel
from torch import Tensor

from popalign_core.config import ModelConfig, RuntimeConfig, SamplingConfig
from popalign_core.errors import ConfigError
from popalign_core.models.denoisers import SD1, SDXL, Conditions, predict
from popalign_core.models.embeddings import PromptEmbeddings, embed_prompts
from popalign_core.sampling.edits import Edits
from popalign_core.sampling.prediction import Captions
from popalign_core.sampling.reuse import FeatureReuse
from popalign_core.sampling.sampler import Sampler, load_sampler

BOTH, ONE = ("unconditional", "conditional"), ("conditional",)
SEEDS = list(range(5))


def forward(unet: Any, seed: int, size: int = 8) -> Tensor:
    """A prediction [2, 4, size, size] for inputs of a seed."""
    generator = torch.Generator().manual_seed(seed)
    family, width = (SDXL, 64) if unet.config.addition_embed_type else (SD1, 32)
    embeds = (torch.randn((2, *shape), generator=generator) for shape in ((16, width), (32,), (6,)))
    latents = torch.randn((2, 4, size, size), generator=generator)
    with torch.inference_mode():
        return predict(unet, family, latents, torch.tensor(900 - seed), Conditions(*embeds, torch.ones(2)))


def forward_with(unet: Any, seed: int, features_of: int, size: int = 8) -> Tensor:
    """The same, with the features of another seed put into the last up block by a hook: everything runs."""
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, inputs: dict[str, Any]) -> Any:
        kept.append(inputs["hidden_states"])
        return args, inputs | {"hidden_states": kept[0]}

    handle = unet.up_blocks[-1].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        forward(unet, features_of, size)
        return forward(unet, seed, size)
    finally:
        handle.remove()


def count_deep(unet: Any) -> list[int]:
    """Sizes of the batches that reach the blocks in the middle, filled as it goes."""
    sizes: list[int] = []
    unet.down_blocks[-1].register_forward_hook(lambda module, args, output: sizes.append(len(output[0])))
    return sizes


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("family", ["sdxl", "sd15", "no mid block"])
def test_a_shallow_unet_is_the_whole_one_with_features_of_before(
    load_family: Callable[[str], Any], family: str, size: int
) -> None:
    unet = load_family("sd15" if family == "no mid block" else family).unet
    if family == "no mid block":
        unet = UNet2DConditionModel.from_config({**unet.config, "mid_block_type": None}).eval()
    whole, other = forward(unet, 1, size), forward_with(unet, 2, features_of=1, size=size)
    deep, reuse = count_deep(unet), FeatureReuse(unet, 3)
    assert torch.equal(forward(reuse.denoiser(0, BOTH), 1, size), whole)
    assert deep == [2]
    # what it keeps is what it would find again: with the same inputs nothing changes at all
    assert torch.equal(forward(reuse.denoiser(1, BOTH), 1, size), whole)
    assert torch.equal(forward(reuse.denoiser(2, BOTH), 2, size), other)
    assert deep == [2]
    assert not torch.equal(other, forward(unet, 2, size))


def test_when_the_whole_unet_runs(tiny_pipeline: Any) -> None:
    deep, reuse = count_deep(tiny_pipeline.unet), FeatureReuse(tiny_pipeline.unet, 3)
    asked: Sequence[tuple[int, tuple[str, ...], bool]] = (
        (0, BOTH, True),
        (1, BOTH, False),
        (1, ("concept 0",), True),  # a forward of its own has features of its own
        (2, ONE, True),  # of the same length, but of other images' parts
        (2, ("concept 0",), False),
        (3, ONE, True),
        (4, BOTH, True),  # those of step 0 are too old
        (5, BOTH, False),
        (5, ONE, False),
        (9, ONE, True),
        (10, ONE, False),
    )
    for step, parts, is_whole in asked:
        deep.clear()
        forward(reuse.denoiser(step, parts), step)
        assert (deep == [2]) is is_whole, (step, parts)


@pytest.fixture
def embeddings(tiny_pipeline: Any) -> PromptEmbeddings:
    return embed_prompts(tiny_pipeline, ["a nurse", "a pilot", "a male person", ""], 4)


def captions_of(embeddings: PromptEmbeddings, edits: Edits | None = None) -> Captions:
    return Captions(embeddings.rows([0, 1]), [0, 1, 0, 1, 1], embeddings.rows([3]), edits)


def draw(sampler: Sampler, captions: Captions, **settings: Any) -> Tensor:
    config = SamplingConfig.model_validate({"n_steps": 6} | settings)
    return torch.cat([latents for _, latents in sampler.sample(captions, SEEDS, config)])


def test_samples_differ_by_what_is_reused_and_leave_the_model_as_it_was(
    tiny_pipeline: Any, embeddings: PromptEmbeddings
) -> None:
    deep = count_deep(tiny_pipeline.unet)
    sampler, captions = Sampler(tiny_pipeline, RuntimeConfig(batch_size=3)), captions_of(embeddings)
    plain = draw(sampler, captions)
    assert deep == [6] * 6 + [4] * 6  # batches of 3 and of 2 images, both halves
    deep.clear()
    reused = draw(sampler, captions, reuse_interval=3)
    assert deep == [6] * 2 + [4] * 2
    assert not torch.equal(reused, plain)
    distance = (reused - plain).abs().mean()
    assert distance < 0.1 * plain.std()
    assert torch.equal(draw(sampler, captions, reuse_interval=1), plain)
    assert torch.equal(draw(sampler, captions, n_steps=1, reuse_interval=3), draw(sampler, captions, n_steps=1))


def test_guidance_that_comes_and_goes_and_edits_keep_features_apart(
    tiny_pipeline: Any, embeddings: PromptEmbeddings
) -> None:
    deep, sampler = count_deep(tiny_pipeline.unet), Sampler(tiny_pipeline, RuntimeConfig())
    # t is 1, 5/6, ... 1/6: weight 0 at first, which takes one half alone, then some of it, then all
    annealed = {"dynamic_cfg": {"tau1": 0.6, "tau2": 0.9}, "timestep_spacing": "trailing"}
    draw(sampler, captions_of(embeddings), **annealed, reuse_interval=3)
    assert deep == [5, 10, 10]
    deep.clear()
    edits = Edits(embeddings.rows([2]), torch.zeros((5, 1), dtype=torch.int64), torch.ones((5, 1)))
    draw(sampler, captions_of(embeddings, edits), fair_diffusion={}, reuse_interval=3)
    assert deep == [10, 5, 10, 5]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # filters are no thread's own
def test_threads_share_a_model(tiny_pipeline: Any, embeddings: PromptEmbeddings) -> None:
    """Some reuse features and some do not, at the same time: each draws what it draws alone."""
    sampler, captions = Sampler(tiny_pipeline, RuntimeConfig()), captions_of(embeddings)
    intervals = [3, 1, 2, 1, 3, 2]
    alone = [draw(sampler, captions, reuse_interval=interval) for interval in intervals]
    with ThreadPoolExecutor(max_workers=3) as pool:
        together = pool.map(lambda interval: draw(sampler, captions, reuse_interval=interval), intervals)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one, other)


def test_an_offloaded_model_is_brought_first(
    tiny_pipeline: Any, make_pipeline: Callable[[], Any], embeddings: PromptEmbeddings
) -> None:
    """Offloading wraps the UNet's own forward: copies that called it would run every block, and keep nothing."""
    expected = draw(Sampler(make_pipeline(), RuntimeConfig()), captions_of(embeddings), reuse_interval=3)
    sampler, deep = Sampler(tiny_pipeline, RuntimeConfig()), count_deep(tiny_pipeline.unet)
    cpu_offload_with_hook(tiny_pipeline.unet, execution_device="cpu")
    moved: list[str] = []
    hook = tiny_pipeline.unet._hf_hook
    bring = hook.pre_forward
    hook.pre_forward = lambda module, *args, **kwargs: (moved.append("unet"), bring(module, *args, **kwargs))[1]
    assert torch.equal(draw(sampler, captions_of(embeddings), reuse_interval=3), expected)
    assert deep == [10, 10]
    assert moved == ["unet"]


def test_a_transformer_is_refused(load_family: Callable[[str], Any]) -> None:
    pipeline = load_family("sd3")
    embeddings = embed_prompts(pipeline, ["a nurse", "a pilot", "a person", ""], 4)
    message = "reuse_interval is 3, but SD3Transformer2DModel has no outer blocks.*set it to 1"
    with pytest.raises(ConfigError, match=message):
        draw(Sampler(pipeline, RuntimeConfig()), captions_of(embeddings), scheduler="euler", reuse_interval=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
@pytest.mark.parametrize("storage", [None, "float8"])
def test_compiled_blocks_draw_the_same(tiny_pipeline_folder: Path, embeddings: PromptEmbeddings, storage: Any) -> None:
    model = ModelConfig(name=str(tiny_pipeline_folder), storage=storage)
    plain, compiled = (
        load_sampler(model, RuntimeConfig(compile=is_compiled), device="cpu") for is_compiled in (False, True)
    )
    expected = draw(plain, captions_of(embeddings), reuse_interval=3)
    drawn = draw(compiled, captions_of(embeddings), reuse_interval=3)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
