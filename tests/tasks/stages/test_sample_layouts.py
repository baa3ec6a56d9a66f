"""The kept layout: taken by a sampler of the same model, size and machine, and by no other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from popalign_core.config import ModelConfig, RuntimeConfig, SamplingConfig
from popalign_core.machine import describe_machine
from popalign_core.models.denoisers import find_denoiser
from popalign_core.models.loading import load_pipeline
from popalign_core.sampling.layouts import architecture
from popalign_core.sampling.sampler import SAMPLER_PARTS
from tasks.common.kept_speeds import keep_value
from tasks.stages.sample_layouts import take_kept_layout
from tasks.stages.sample_shards import _load

RUNTIME = RuntimeConfig(device="cpu", batch_size=32)
SIZE = (64, 64)


@pytest.fixture
def model(tiny_weights: Path) -> ModelConfig:
    return ModelConfig(name=str(tiny_weights / "pipeline"))


@pytest.fixture
def pipeline(model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny pipeline, with a layout kept for it here: contiguous, in batches of 16."""
    monkeypatch.setenv("POPALIGN_CACHE", str(tmp_path / "cache"))
    loaded = load_pipeline(model, device=torch.device("cpu"), components=SAMPLER_PARTS)
    about = {
        "machine": describe_machine("cpu", 0),
        "model": architecture((find_denoiser(loaded), loaded.vae)),
        "size": list(SIZE),
        "batch_size": 32,
        "runtime": [False, False, False],
    }
    keep_value("layouts", about, {"channels_last": False, "batch_size": 16, "compile": False, "gain": 1.1})
    return loaded


def test_auto_takes_what_is_kept_for_the_same(pipeline: Any) -> None:
    taken = take_kept_layout(pipeline, size=SIZE, runtime=RUNTIME)
    assert taken == RUNTIME.model_copy(update={"channels_last": False, "batch_size": 16})


@pytest.mark.parametrize(
    ("size", "update"),
    [
        ((128, 64), {}),
        (SIZE, {"n_threads": 7}),
        (SIZE, {"batch_size": 8}),
        (SIZE, {"fuse_qkv": True}),
        (SIZE, {"channels_last": True}),
        (SIZE, {"channels_last": False}),
    ],
)
def test_nothing_else_is_changed(pipeline: Any, size: tuple[int, int], update: dict[str, Any]) -> None:
    runtime = RUNTIME.model_copy(update=update)
    assert take_kept_layout(pipeline, size=size, runtime=runtime) == runtime


def test_another_architecture_has_none(pipeline: Any) -> None:
    pipeline.unet.register_module("more", torch.nn.Linear(2, 2))
    assert take_kept_layout(pipeline, size=SIZE, runtime=RUNTIME) == RUNTIME


def test_the_sampler_of_a_shard_lies_as_is_kept(pipeline: Any, model: ModelConfig) -> None:
    size = SamplingConfig(width=SIZE[0], height=SIZE[1])
    for runtime, batch_size, is_plain in (
        (RUNTIME, 16, True),
        (RUNTIME.model_copy(update={"channels_last": True}), 32, False),
    ):
        sampler, _ = _load(model, None, None, (size.width, size.height), runtime, "cpu")
        assert sampler.batch_size == batch_size
        assert sampler.pipeline.unet.conv_in.weight.is_contiguous() == is_plain
