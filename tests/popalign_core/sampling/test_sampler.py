"""Batches that fit: back-off when memory runs out, the measured batch size, and the layouts that only change speed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from popalign_core.config import ModelConfig, RuntimeConfig, SamplingConfig
from popalign_core.errors import ResourceError
from popalign_core.models.embeddings import PromptEmbeddings, embed_prompts
from popalign_core.sampling.edits import Edits
from popalign_core.sampling.prediction import Captions
from popalign_core.sampling.sampler import Sampler, fitting_batch, load_sampler

CONFIG = SamplingConfig(n_steps=3)
SEEDS = list(range(7))
OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes."
"""What torch says on a CPU; CUDA's is an error class of its own, told by its text in the same way."""


@pytest.fixture
def embeddings(tiny_pipeline: Any) -> PromptEmbeddings:
    return embed_prompts(tiny_pipeline, ["a nurse", "a pilot", ""], 4)


def captions_of(embeddings: PromptEmbeddings) -> Captions:
    return Captions(embeddings.rows([0, 1]), [0, 1, 0, 1, 1, 0, 1], embeddings.rows([2]))


def draw(sampler: Sampler, captions: Captions, config: SamplingConfig = CONFIG) -> tuple[torch.Tensor, list[int]]:
    """All latents, and the size of each batch."""
    parts = [latents for _, latents in sampler.sample(captions, SEEDS, config)]
    return torch.cat(parts), [len(part) for part in parts]


def small_memory(pipeline: Any, n_images: int, error: Exception) -> None:
    """A denoiser that holds no more than both halves of so many images."""

    def check(module: Any, inputs: Any) -> None:
        if len(inputs[0]) > 2 * n_images:
            raise error

    pipeline.unet.register_forward_pre_hook(check)


@pytest.mark.parametrize(
    "error", [RuntimeError(OUT_OF_MEMORY), torch.OutOfMemoryError("CUDA out of memory."), MemoryError()]
)
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    tiny_pipeline: Any,
    make_pipeline: Callable[[], Any],
    embeddings: PromptEmbeddings,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, sizes = draw(Sampler(make_pipeline(), RuntimeConfig(batch_size=8)), captions_of(embeddings))
    assert sizes == [7]
    small_memory(tiny_pipeline, 2, error)
    sampler = Sampler(tiny_pipeline, RuntimeConfig(batch_size=8))
    latents, sizes = draw(sampler, captions_of(embeddings))
    assert sizes == [2, 2, 2, 1]
    assert sampler.batch_size == 2  # remembered for the next shard
    torch.testing.assert_close(latents, whole, rtol=0, atol=1e-4)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("popalign_core")]
    assert told == [f"memory ran out: continuing with batches of {n} image(s)" for n in (4, 2)]


def test_one_image_that_does_not_fit_is_an_error_that_says_what_to_do(
    tiny_pipeline: Any, embeddings: PromptEmbeddings
) -> None:
    small_memory(tiny_pipeline, 0, RuntimeError(OUT_OF_MEMORY))
    with pytest.raises(ResourceError, match=r"one image of 64 x 64 px; set runtime\.offload=true"):
        draw(Sampler(tiny_pipeline, RuntimeConfig()), captions_of(embeddings))


def test_other_errors_are_not_taken_for_a_full_memory(tiny_pipeline: Any, embeddings: PromptEmbeddings) -> None:
    small_memory(tiny_pipeline, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        draw(Sampler(tiny_pipeline, RuntimeConfig()), captions_of(embeddings))


@pytest.mark.parametrize(
    ("limit", "free", "expected"),
    # 3 GiB for the first image and 2 for each further one: 90% of 24 GiB is 21.6, so 1 + 18.6 // 2
    [(32, 24, 10), (8, 24, 8), (32, 3, 1), (32, 1, 1)],
)
def test_the_batch_that_free_memory_holds(limit: int, free: int, expected: int) -> None:
    gib = 2**30
    assert fitting_batch(limit, free * gib, lambda n: (1 + 2 * n) * gib) == expected


def test_a_batch_size_that_a_second_image_does_not_change_is_the_limit() -> None:
    assert fitting_batch(16, 2**30, lambda n: 2**20) == 16


@pytest.mark.parametrize(
    "speed", [{"channels_last": False}, {"fuse_qkv": True}, {"fuse_qkv": True, "channels_last": False}]
)
def test_speed_changes_no_picture_beyond_rounding(
    make_pipeline: Callable[[], Any], embeddings: PromptEmbeddings, speed: dict[str, bool]
) -> None:
    plain, _ = draw(Sampler(make_pipeline(), RuntimeConfig(channels_last=False)), captions_of(embeddings))
    fast, _ = draw(Sampler(make_pipeline(), RuntimeConfig(**speed)), captions_of(embeddings))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-4)


def test_channels_last_is_how_the_weights_lie(tiny_pipeline: Any) -> None:
    Sampler(tiny_pipeline, RuntimeConfig())
    for module in (tiny_pipeline.unet, tiny_pipeline.vae):
        kernels = [weight for weight in module.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]
        assert len(kernels) > 5
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


@pytest.mark.parametrize("name", ["sdxl", "sd15", "sd3", "flux-dev"])
def test_a_sampler_loads_without_text_encoders(
    family_folder: Callable[[str], Path], load_family: Callable[[str], Any], name: str
) -> None:
    model = ModelConfig(name=str(family_folder(name)))
    sampler = load_sampler(model, RuntimeConfig(), device="cpu")
    assert sampler.pipeline.text_encoder is None
    whole = load_family(name)
    embeddings = embed_prompts(whole, ["a nurse", "a pilot", ""], 4)
    config = CONFIG.model_copy(update={"scheduler": "euler"})
    latents, _ = draw(sampler, captions_of(embeddings), config)
    expected, _ = draw(Sampler(whole, RuntimeConfig()), captions_of(embeddings), config)
    assert torch.equal(latents, expected)


def test_edits_and_starts_go_with_their_images(make_pipeline: Callable[[], Any], embeddings: PromptEmbeddings) -> None:
    """In batches of 2 as in one of 7: each image keeps what belongs to it."""
    config = SamplingConfig.model_validate(
        {
            "n_steps": 4,
            "fair_diffusion": {"threshold": 0.5},
            "sdedit": {"folder": "x", "strength": 0.75},
        }
    )
    captions = Captions(
        embeddings.rows([0, 1]),
        [0, 1, 0, 1, 1, 0, 1],
        embeddings.rows([2]),
        Edits(
            embeddings.rows([0]),
            torch.zeros((7, 1), dtype=torch.int64),
            torch.tensor([[1.0], [0], [-1], [0], [1], [0], [0]]),
        ),
        torch.randn((7, 4, 8, 8), generator=torch.Generator().manual_seed(0)),
    )
    one, sizes = draw(Sampler(make_pipeline(), RuntimeConfig(batch_size=2)), captions, config)
    assert sizes == [2, 2, 2, 1]
    other, _ = draw(Sampler(make_pipeline(), RuntimeConfig(batch_size=7)), captions, config)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert np.unique(one.numpy().round(3), axis=0).shape[0] == 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # inductor's own
def test_compiled_blocks_draw_the_same_and_leave_a_cache(
    make_pipeline: Callable[[], Any], embeddings: PromptEmbeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    plain, _ = draw(Sampler(make_pipeline(), RuntimeConfig(batch_size=7)), captions_of(embeddings))
    compiled, _ = draw(Sampler(make_pipeline(), RuntimeConfig(batch_size=7, compile=True)), captions_of(embeddings))
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-4)
    assert any((tmp_path / ".cache" / "popalign" / "inductor").rglob("*.cpp"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
