"""Tiny random pipelines in the real diffusers format: SDXL for most tests, and one of each model family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_copies import Copier
from torch import Tensor

from popalign_core.training.data import PreferenceData

MakeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def tiny_pipeline_folder(family_folder: Callable[[str], Path]) -> Path:
    """v-prediction, UNet (32, 64), 4 x 8 x 8 latents, 64 x 64 px, captions of 16 tokens."""
    return family_folder("sdxl-v")


@pytest.fixture(scope="session")
def loaded_pipeline(tiny_pipeline_folder: Path) -> Any:
    """Loaded once a session; for copies only."""
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline_folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def make_pipeline(loaded_pipeline: Any) -> Callable[[], Any]:
    """Makes fresh copies: training and merging change a pipeline in place."""
    return Copier(loaded_pipeline)


@pytest.fixture
def tiny_pipeline(make_pipeline: Callable[[], Any]) -> Any:
    """One fresh copy."""
    return make_pipeline()


@pytest.fixture(scope="session")
def family_folder(make_once: MakeOnce) -> Callable[[str], Path]:
    """The folder of one of `tiny_models.MODELS`, saved when it is first asked for."""

    def folder(name: str) -> Path:
        from tiny_models import MODELS

        return make_once(name, lambda place: MODELS[name]().save_pretrained(place, safe_serialization=True))

    return folder


@pytest.fixture(scope="session")
def load_family(family_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    """Makes fresh copies of one of `tiny_models.MODELS`, loaded as the pipeline loads its model."""
    from popalign_core.config import ModelConfig
    from popalign_core.models.loading import load_pipeline

    loaded: dict[str, Copier] = {}

    def load(name: str) -> Any:
        if name not in loaded:
            pipeline = load_pipeline(ModelConfig(name=str(family_folder(name))), device=torch.device("cpu"))
            loaded[name] = Copier(pipeline)
        return loaded[name]()

    return load


@pytest.fixture
def data() -> PreferenceData:
    """Two set pairs of 3 + 3 samples on prompts 0 and 1, the sides around +1 and -1; prompts 2 and 3 retained."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    preferred = torch.tensor([True, False]).repeat(6)
    set_index = torch.tensor([0, 1]).repeat_interleave(6)
    return PreferenceData(
        latents=torch.where(preferred, 1.0, -1.0)[:, None, None, None] + 0.3 * normal(12, 4, 8, 8),
        preferred=preferred,
        prompt_index=set_index.clone(),
        set_index=set_index,
        prompt_embeds=normal(4, 16, 64),
        pooled_prompt_embeds=normal(4, 32),
        empty_prompt_embeds=normal(1, 16, 64),
        empty_pooled=normal(1, 32),
        retained_latents=normal(5, 4, 8, 8),
        retained_prompt_index=torch.tensor([2, 2, 3, 3, 3]),
        retained_generic=torch.tensor([True, True, False, False, False]),
    )
