"""A denoiser alone, as public checkpoints ship one, in place of a pipeline's own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from popalign_core.config import ModelConfig
from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.models.denoisers import find_denoiser
from popalign_core.models.loading import load_pipeline, model_hash

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def other(family_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """The UNet of the SDXL stand-in with other weights."""
    folder = shutil.copytree(family_folder("sdxl") / "unet", tmp_path / "unet")
    save_file({name: weight + 1 for name, weight in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


def model(family_folder: Callable[[str], Path], denoiser: Path, family: str = "sdxl") -> ModelConfig:
    return ModelConfig(name=str(family_folder(family)), denoiser=str(denoiser))


@pytest.mark.parametrize("family", ["sdxl", "sd15", "sd3", "flux-dev"])
def test_takes_the_place_of_the_models_own(
    family: str, load_family: Callable[[str], Any], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    theirs = find_denoiser(load_family(family))
    for parameter in theirs.parameters():
        parameter.data += 1
    theirs.save_pretrained(tmp_path / "denoiser")
    chosen = model(family_folder, tmp_path / "denoiser", family).model_copy(update={"dtype": "bfloat16"})
    pipeline = load_pipeline(chosen, device=CPU)
    loaded = find_denoiser(pipeline)
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[key], w.bfloat16()) for key, w in theirs.state_dict().items())
    own = load_pipeline(ModelConfig(name=chosen.name, dtype="bfloat16"), device=CPU)
    for key, expected in own.text_encoder.state_dict().items():
        assert torch.equal(pipeline.text_encoder.state_dict()[key], expected)


def test_the_models_own_need_not_be_there(other: Path, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Nobody has to download a UNet that is not used."""
    bare = shutil.copytree(family_folder("sdxl"), tmp_path / "bare")
    shutil.rmtree(bare / "unet")
    pipeline = load_pipeline(ModelConfig(name=str(bare), denoiser=str(other)), device=CPU)
    assert torch.equal(pipeline.unet.conv_in.weight, load_file(other / WEIGHTS)["conv_in.weight"])


def test_is_left_out_with_the_component(other: Path, family_folder: Callable[[str], Path]) -> None:
    chosen = model(family_folder, other)
    assert load_pipeline(chosen, device=CPU, components=("vae",)).unet is None
    assert load_pipeline(chosen, device=CPU, components=("unet", "scheduler")).text_encoder is None


def test_goes_into_the_hash(other: Path, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    first = model_hash(model(family_folder, other))
    assert "+denoiser:" in first
    assert first != model_hash(ModelConfig(name=str(family_folder("sdxl"))))
    # the model's own is not read, and need not be there
    bare = shutil.copytree(family_folder("sdxl"), tmp_path / "bare", ignore=shutil.ignore_patterns(WEIGHTS))
    shutil.copy(family_folder("sdxl") / "vae" / WEIGHTS, bare / "vae" / WEIGHTS)
    assert model_hash(ModelConfig(name=str(bare), denoiser=str(other))) == first
    assert model_hash(model(family_folder, shutil.copytree(other, tmp_path / "copy"))) == first
    assert model_hash(model(family_folder, family_folder("sdxl") / "unet")) != first


def test_a_missing_folder_says_how_to_get_it(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"holds no denoiser \(no config\.json\).*hf download OWNER/NAME"):
        model_hash(model(family_folder, tmp_path / "absent"))


@pytest.mark.parametrize(
    ("family", "problem"),
    [
        ("sd3", "_class_name SD3Transformer2DModel, not UNet2DConditionModel; .*in_channels 16, not 4"),
        ("sd15", "cross_attention_dim 32, not 64; addition_embed_type None, not text_time"),
    ],
)
def test_another_models_denoiser(family: str, problem: str, family_folder: Callable[[str], Path]) -> None:
    theirs = family_folder(family) / ("transformer" if family == "sd3" else "unet")
    with pytest.raises(ConfigError, match=f"does not fit .*sdxl: its config.json has {problem}"):
        load_pipeline(model(family_folder, theirs), device=CPU)


def _truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])


def _drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["conv_in.weight"]
    save_file(weights, folder / WEIGHTS)


def _widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"block_out_channels": [64, 128]}))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_truncate, "cannot load model.denoiser .*incomplete metadata"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"cannot load model.denoiser .*no file named {WEIGHTS}"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load model.denoiser"),
        (_widen, "cannot load model.denoiser .*expected shape"),
        (_drop_a_weight, "lacks 1 weights, such as conv_in.weight"),
    ],
)
def test_a_damaged_folder(
    damage: Callable[[Path], None], problem: str, other: Path, family_folder: Callable[[str], Path]
) -> None:
    damage(other)
    with pytest.raises(MissingWeightsError, match=problem):
        load_pipeline(model(family_folder, other), device=CPU)
