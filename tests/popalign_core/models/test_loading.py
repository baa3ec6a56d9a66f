import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from popalign_core.config import ModelConfig
from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.models.denoisers import FLUX, family_of
from popalign_core.models.loading import load_pipeline, model_hash, reads_guidance, resolve_device

CPU = torch.device("cpu")


def test_loads_a_folder_in_the_dtype_asked_for(tiny_pipeline_folder: Path, tiny_pipeline: Any) -> None:
    pipeline = load_pipeline(ModelConfig(name=str(tiny_pipeline_folder)), device=CPU)
    expected = tiny_pipeline.unet.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in pipeline.unet.state_dict().items())
    half = load_pipeline(ModelConfig(name=str(tiny_pipeline_folder), dtype="bfloat16"), device=CPU)
    assert half.unet.dtype == half.text_encoder_2.dtype == torch.bfloat16


def test_hash_follows_content_not_place(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_pipeline_folder, tmp_path / "copy")
    (copy / "notes.md").write_text("not part of the model")
    before = model_hash(ModelConfig(name=str(tiny_pipeline_folder)))
    assert model_hash(ModelConfig(name=str(copy))) == before
    assert len(before) == 64
    weights = next((copy / "unet").glob("*.safetensors"))
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    assert model_hash(ModelConfig(name=str(copy))) != before


def test_hash_of_a_hub_id_is_its_revision() -> None:
    assert model_hash(ModelConfig(name="owner/model", revision="abc123")) == "owner/model@abc123"
    with pytest.raises(ConfigError, match="'owner/model' is no folder here, and as a hub id it has no revision"):
        model_hash(ModelConfig(name="owner/model"))


def test_missing_weights_say_what_and_how(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="hf download owner/model --revision abc"):
        load_pipeline(ModelConfig(name="owner/model", revision="abc"), device=CPU)
    with pytest.raises(MissingWeightsError, match=r"no model_index\.json"):
        load_pipeline(ModelConfig(name=str(tmp_path)), device=CPU)
    with pytest.raises(MissingWeightsError, match=r"'not-a-model' is no folder, no \.safetensors file and no hub id"):
        model_hash(ModelConfig(name="not-a-model"))
    broken = shutil.copytree(tiny_pipeline_folder, tmp_path / "broken")
    next((broken / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(MissingWeightsError, match="restore its files"):
        load_pipeline(ModelConfig(name=str(broken)), device=CPU)
    (broken / "model_index.json").write_text("{", encoding="utf-8")
    with pytest.raises(MissingWeightsError, match="restore its files"):
        load_pipeline(ModelConfig(name=str(broken)), device=CPU)


def test_devices() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="'gpu' is unknown to torch"):
        resolve_device("gpu")
    with pytest.raises(ConfigError, match="'xpu' is not on this machine"):
        resolve_device("xpu")


def test_naming_and_hashing_need_no_torch() -> None:
    code = "import sys, popalign_core.models.loading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


@pytest.mark.parametrize(
    ("name", "reads"), [("flux-dev", True), ("flux-schnell", False), ("sd3", False), ("sd15", False)]
)
def test_who_reads_the_guidance_scale(family_folder: Callable[[str], Path], name: str, reads: bool) -> None:
    assert reads_guidance(ModelConfig(name=str(family_folder(name)))) is reads


def test_the_denoiser_in_its_place_says_whether_it_reads_the_guidance_scale(
    family_folder: Callable[[str], Path],
) -> None:
    """A FLUX.1-dev whose distillation was undone is one that takes two halves again."""
    dev, undone = str(family_folder("flux-dev")), family_folder("flux-schnell") / "transformer"
    assert reads_guidance(ModelConfig(name=dev, denoiser=str(undone))) is False
    pipeline = load_pipeline(ModelConfig(name=dev, denoiser=str(undone)), device=CPU)
    assert family_of(pipeline.transformer) is FLUX
    assert pipeline.scheduler.config.use_dynamic_shifting is True
