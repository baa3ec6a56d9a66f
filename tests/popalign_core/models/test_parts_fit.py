"""Folders whose parts are whole but of different models, and models that read more than noise and captions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from popalign_core.config import ModelConfig, SamplingConfig
from popalign_core.errors import DamagedWeightsError
from popalign_core.models.embeddings import embed_prompts
from popalign_core.models.loading import load_pipeline
from popalign_core.sampling.engine import sample_images

CPU = torch.device("cpu")
Folders = Callable[[str], Path]


def load(folder: Path) -> object:
    return load_pipeline(ModelConfig(name=str(folder)), device=CPU)


def settle(folder: Path, file: str, **settings: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("family", "part", "other", "problem"),
    [
        ("flux-dev", "vae", "sd15", "its VAE has latents of 4 channels, its denoiser reads 16"),
        ("sd15", "vae", "flux-dev", "its VAE has latents of 16 channels, its denoiser reads 4"),
        ("sdxl", "unet", "sd15", "StableDiffusionXLPipeline, but its denoiser is one of Stable Diffusion 1/2"),
        ("sd15", "unet", "sdxl", "StableDiffusionPipeline, but its denoiser is one of SDXL"),
    ],
)
def test_a_part_of_another_model_is_refused(
    family: str, part: str, other: str, problem: str, family_folder: Folders, tmp_path: Path
) -> None:
    shutil.copytree(family_folder(family), tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / part)
    shutil.copytree(family_folder(other) / part, tmp_path / part)
    with pytest.raises(DamagedWeightsError, match=problem):
        load(tmp_path)


@pytest.mark.parametrize("n_channels", [8, 9])
def test_a_denoiser_for_inpainting_or_editing_is_refused(
    n_channels: int, family_folder: Folders, tmp_path: Path
) -> None:
    shutil.copytree(family_folder("sd15"), tmp_path, dirs_exist_ok=True)
    settle(tmp_path, "unet/config.json", in_channels=n_channels)
    settle(tmp_path, "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"conv_in.weight": torch.zeros(32, n_channels, 3, 3)}, file, {"format": "pt"})
    with pytest.raises(DamagedWeightsError, match=rf"reads {n_channels} channels and makes 4: it is for inpainting"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"scaling_factor": 0}, "scaling_factor 0, which is no positive number"),
        ({"scaling_factor": None}, "scaling_factor None"),
        ({"scaling_factor": "0.18"}, "scaling_factor '0.18'"),
        ({"scaling_factor": float("nan")}, "scaling_factor nan"),
        ({"shift_factor": "0.1"}, "shift_factor '0.1', which is no number"),
        ({"latents_mean": [0.1], "latents_std": [1]}, r"latents_mean \[0.1\], which are no 4 numbers"),
        ({"latents_std": [1, 1, 1, None]}, r"latents_std \[1, 1, 1, None\]"),
    ],
)
def test_factors_of_the_vae_that_are_none(
    settings: dict[str, object], problem: str, family_folder: Folders, tmp_path: Path
) -> None:
    shutil.copytree(family_folder("sd15"), tmp_path, dirs_exist_ok=True)
    settle(tmp_path, "vae/config.json", **settings)
    with pytest.raises(DamagedWeightsError, match=f"its VAE has {problem}"):
        load(tmp_path)


@pytest.mark.parametrize(("family", "other"), [("sd15", "sdxl"), ("flux-dev", "sd3"), ("sdxl", "sd15")])
def test_embeddings_of_another_model_are_refused(family: str, other: str, family_folder: Folders) -> None:
    pipeline, theirs = load(family_folder(family)), embed_prompts(load(family_folder(other)), ["a judge"], 1)
    config = SamplingConfig(n_steps=1, width=64, height=64, scheduler="euler")
    with pytest.raises(DamagedWeightsError, match=r"give embeddings of width \d+, pooled \d+; the denoiser reads \d+"):
        sample_images(pipeline, theirs, theirs, [0], [1], config)
