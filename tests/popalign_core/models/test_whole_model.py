"""A whole pipeline of a base model with its own denoiser and LoRA, and of what was trained on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from trained_folders import write_linked

from popalign_core.config import ModelConfig
from popalign_core.models.linked_files import BaseNote, read_note
from popalign_core.models.loading import load_pipeline, model_hash
from popalign_core.models.trained_weights import TrainedModel, TrainedPart

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def make_lora(file: Path, *layers: str) -> str:
    generator = torch.Generator().manual_seed(len(layers))
    shapes = {name: (64, 64) if name.startswith("unet") else (32, 32) for name in layers}
    save_file(
        {
            f"{name}.lora_{side}.weight": torch.randn(shape, generator=generator)
            for name, (n_out, n_in) in shapes.items()
            for side, shape in (("A", (2, n_in)), ("B", (n_out, 2)))
        },
        file,
    )
    return str(file)


TO_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OF_TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.out_proj"


def assert_loads_alike(model: TrainedModel, folder: Path) -> None:
    """diffusers from the folder, and the loader from base and parts."""
    stock = StableDiffusionXLPipeline.from_pretrained(write_linked(model, folder), add_watermarker=False)
    ours = load_pipeline(ModelConfig(), device=CPU, trained=model)
    for part in PARTS:
        expected, found = (getattr(each, part).state_dict() for each in (ours, stock))
        assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == [], part


def test_parts_that_the_bases_own_lora_changes_are_written(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    file = make_lora(tmp_path / "style.safetensors", TO_Q, OF_TEXT)
    base = ModelConfig(name=str(family_folder("sdxl")), lora=file, lora_scale=0.5)
    assert_loads_alike(TrainedModel(base, ()), tmp_path / "alone")
    links = {path.parent.name for path in (tmp_path / "alone").rglob("*") if path.is_symlink()}
    assert {"vae", "text_encoder_2"} <= links
    assert links.isdisjoint({"unet", "text_encoder"})
    # an adapter on top of it, and a denoiser in place of what it changed: the text encoder stays changed
    added = TrainedPart("unet", Path(make_lora(tmp_path / "added.safetensors", TO_Q)))
    assert_loads_alike(TrainedModel(base, (added,)), tmp_path / "added")
    whole = TrainedPart("unet", family_folder("sdxl") / "unet")
    assert_loads_alike(TrainedModel(base, (added, whole)), tmp_path / "replaced")
    found = load_file(tmp_path / "replaced" / "unet" / WEIGHTS)
    assert all(torch.equal(each, found[name]) for name, each in load_file(whole.path / WEIGHTS).items())


def test_a_denoiser_of_its_own_is_taken(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    own = load_pipeline(ModelConfig(name=str(family_folder("sdxl"))), device=CPU, components=("unet",)).unet
    with torch.no_grad():
        own.conv_out.bias += 1
    own.save_pretrained(tmp_path / "own")
    base = ModelConfig(name=str(family_folder("sdxl")), denoiser=str(tmp_path / "own"))
    assert_loads_alike(TrainedModel(base, ()), tmp_path / "model")
    assert (tmp_path / "model" / "unet" / WEIGHTS).samefile(tmp_path / "own" / WEIGHTS)


def test_a_denoiser_that_is_replaced_is_not_even_read(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = family_folder("sdxl")
    base = ModelConfig(name=str(write_linked(TrainedModel(ModelConfig(name=str(folder)), ()), tmp_path / "base")))
    (tmp_path / "base" / "unet" / WEIGHTS).unlink()
    whole = TrainedModel(base, (TrainedPart("unet", folder / "unet"),))
    loaded: Any = load_pipeline(ModelConfig(), device=CPU, trained=whole, components=("unet", "scheduler"))
    assert torch.equal(loaded.unet.conv_in.weight, load_file(folder / "unet" / WEIGHTS)["conv_in.weight"])


@pytest.mark.parametrize("more", [{}, {"revision": "0a1b"}, {"lora": 'a "b".safetensors', "lora_scale": 0.5}])
def test_a_note_is_read_back(more: dict[str, Any], tmp_path: Path, family_folder: Callable[[str], Path]) -> None:
    note = BaseNote(ModelConfig(name="owner/name", **more), "hash", "train-v4-key")
    (tmp_path / "base.toml").write_text(note.to_toml(), encoding="utf-8")
    assert read_note(tmp_path) == note
    assert read_note(tmp_path / "nowhere") is None
    # and is no part of what a folder is
    folder = write_linked(TrainedModel(ModelConfig(name=str(family_folder("sdxl"))), ()), tmp_path / "model")
    before = model_hash(ModelConfig(name=str(folder)))
    (folder / "base.toml").write_text(note.to_toml(), encoding="utf-8")
    assert model_hash(ModelConfig(name=str(folder))) == before
