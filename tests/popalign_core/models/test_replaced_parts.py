"""A VAE and several LoRAs in place: as diffusers itself loads them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from popalign_core.config import LoraConfig, ModelConfig
from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.models.loading import load_pipeline, model_hash

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae(family_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """The VAE of the SD 1.5 stand-in with other weights."""
    folder = shutil.copytree(family_folder("sd15") / "vae", tmp_path / "vae")
    save_file({name: weight * 1.1 for name, weight in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


def make_lora(folder: Path, name: str, seed: int) -> Path:
    """A LoRA of rank 2 on the queries of the UNet, as diffusers saves it."""
    from peft import LoraConfig as PeftConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.unet.add_adapter(PeftConfig(r=2, lora_alpha=2, target_modules=["to_q"]))
    state = get_peft_model_state_dict(pipeline.unet)
    generator = torch.Generator().manual_seed(seed)
    layers = {key: torch.randn(weight.shape, generator=generator) * 0.1 for key, weight in state.items()}
    place = folder.parent / f"loras-{seed}"
    pipeline.save_lora_weights(place, unet_lora_layers=layers, weight_name=name)
    return place / name


def test_a_vae_takes_the_place_of_the_models_own(vae: Path, family_folder: Callable[[str], Path]) -> None:
    folder = family_folder("sd15")
    model = ModelConfig(name=str(folder), vae=str(vae))
    theirs = StableDiffusionPipeline.from_pretrained(folder, vae=AutoencoderKL.from_pretrained(vae))
    ours = load_pipeline(model, device=CPU)
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = (pipeline.vae.decode(latents, return_dict=False)[0] for pipeline in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert load_pipeline(model, device=CPU, components=("unet", "scheduler")).vae is None
    assert len({model_hash(model), model_hash(ModelConfig(name=str(folder)))}) == 2


def test_the_models_own_vae_need_not_be_there(vae: Path, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    bare = shutil.copytree(family_folder("sd15"), tmp_path / "bare")
    (bare / "vae" / WEIGHTS).unlink()
    model = ModelConfig(name=str(bare), vae=str(vae))
    assert load_pipeline(model, device=CPU).vae is not None
    assert model_hash(model) == model_hash(ModelConfig(name=str(family_folder("sd15")), vae=str(vae)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"latent_channels": 16}, "latent_channels 16, not 4"),
        ({"scaling_factor": 0.5}, "scaling_factor 0.5, not 0.18215"),
    ],
)
def test_a_vae_of_another_model_is_refused(
    change: dict[str, Any], problem: str, vae: Path, family_folder: Callable[[str], Path]
) -> None:
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=rf"model\.vae .* does not fit .*{problem}; give a vae that was trained for"):
        load_pipeline(ModelConfig(name=str(family_folder("sd15")), vae=str(vae)), device=CPU)


def test_a_missing_vae_says_how_to_get_it(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"holds no vae .* --include 'vae/\*'"):
        model_hash(ModelConfig(name=str(family_folder("sd15")), vae=str(tmp_path / "absent")))
    public = ModelConfig(name=str(family_folder("sd15")), vae=str(tmp_path / "sdxl-vae-fp16-fix"))
    with pytest.raises(MissingWeightsError, match=r"popalign fetch.*madebyollin/sdxl-vae-fp16-fix"):
        model_hash(public)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # of diffusers' own loading
def test_several_loras_are_fused_as_diffusers_adds_them_up(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(family_folder("sd15"), tmp_path / "model")
    files = [make_lora(folder, "a.safetensors", 1), make_lora(folder, "b.safetensors", 2)]
    scales = [0.7, -0.4]
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    for name, file in zip("ab", files, strict=True):
        theirs.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    theirs.set_adapters(["a", "b"], scales)
    loras = tuple(LoraConfig(path=str(file), scale=scale) for file, scale in zip(files, scales, strict=True))
    model = ModelConfig(name=str(folder), loras=loras)
    ours = load_pipeline(model, device=CPU)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((2, 4, 8, 8), generator=generator)
    words = torch.randn((2, 16, 32), generator=generator)
    with torch.no_grad():
        found, expected, plain = (
            pipeline.unet(latents, 500, words).sample
            for pipeline in (ours, theirs, load_pipeline(ModelConfig(name=str(folder)), device=CPU))
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - plain).abs().max() > 1e-3
    one = ModelConfig(name=str(folder), loras=loras[:1])
    assert model_hash(one) == model_hash(ModelConfig(name=str(folder), lora=str(files[0]), lora_scale=0.7))
    assert len({model_hash(model), model_hash(one), model_hash(ModelConfig(name=str(folder), loras=loras[::-1]))}) == 3


def test_a_lora_is_named_in_one_way() -> None:
    with pytest.raises(ValidationError, match="lora and loras both name LoRAs"):
        ModelConfig(lora="a.safetensors", loras=(LoraConfig(path="b.safetensors"),))
    with pytest.raises(ValidationError, match="scale is 0, which fuses nothing"):
        LoraConfig(path="b.safetensors", scale=0)
