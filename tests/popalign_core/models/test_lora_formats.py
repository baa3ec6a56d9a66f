"""LoRA files by the names of the models' first code, as ComfyUI and kohya write them: read, or refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from popalign_core.errors import ConfigError
from popalign_core.models.lora import fuse_lora

DOWN_UP = (("lora_down", "lora_up"), ("lora_A", "lora_B"))
LoadFamily = Callable[[str], Any]


def draw(n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, n_in), generator=generator), torch.randn((n_out, 2), generator=generator)


def write(path: Path, layer: str, down: Tensor, up: Tensor, ends: tuple[str, str], alpha: float | None = None) -> Path:
    content = {f"{layer}.{end}.weight": tensor for end, tensor in zip(ends, (down, up), strict=True)}
    save_file(content | ({} if alpha is None else {f"{layer}.alpha": torch.tensor(alpha)}), path)
    return path


@pytest.mark.parametrize("ends", DOWN_UP)
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_comfyuis_flux_names_are_read(
    ends: tuple[str, str], alpha: float | None, load_family: LoadFamily, tmp_path: Path
) -> None:
    base, fused = load_family("flux-dev").transformer, load_family("flux-dev")
    down, up = draw(32, 96)  # queries, keys and values are one layer there
    file = write(tmp_path / "l.safetensors", "diffusion_model.double_blocks.0.img_attn.qkv", down, up, ends, alpha)
    fuse_lora(fused, file, 1.0)
    for name, part in zip(("to_q", "to_k", "to_v"), up.chunk(3), strict=True):
        layer = f"transformer_blocks.0.attn.{name}"
        expected = base.get_submodule(layer).weight + (alpha or 2) / 2 * part @ down
        torch.testing.assert_close(fused.transformer.get_submodule(layer).weight, expected)


@pytest.mark.parametrize("ends", DOWN_UP)
@pytest.mark.parametrize(
    ("part", "theirs", "ours"),
    [
        (
            "unet",
            "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        ),
        (
            "text_encoder",
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.out_proj",
            "encoder.layers.0.self_attn.out_proj",
        ),
        (
            "text_encoder_2",
            "text_encoders.clip_g.transformer.text_model.encoder.layers.1.mlp.fc1",
            "text_model.encoder.layers.1.mlp.fc1",
        ),
    ],
)
def test_comfyuis_sdxl_names_are_read(
    part: str, theirs: str, ours: str, ends: tuple[str, str], load_family: LoadFamily, tmp_path: Path
) -> None:
    before, fused = getattr(load_family("sdxl"), part).get_submodule(ours).weight, load_family("sdxl")
    down, up = draw(before.shape[1], before.shape[0])
    fuse_lora(fused, write(tmp_path / "l.safetensors", theirs, down, up, ends, 1.0), 1.0)
    torch.testing.assert_close(getattr(fused, part).get_submodule(ours).weight, before + up @ down / 2)


@pytest.mark.parametrize(
    ("family", "layer", "problem"),
    [
        ("sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv", "has kohya's names for SD3, such as .*; convert it to"),
        ("sd3", "lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "has kohya's names for SD3"),
        ("sd3", "diffusion_model.joint_blocks.0.x_block.attn.qkv", "has ComfyUI's names for SD3, .* rows of a qkv are"),
        ("flux-dev", "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q", "2 tensors for a T5"),
        ("flux-dev", "lora_te2_encoder_block_0_layer_0_SelfAttention_q", "2 tensors for a T5, .*; train one without"),
        ("sd3", "lora_te3_encoder_block_0_layer_0_SelfAttention_q", "kohya's names for SD3"),
        ("flux-dev", "diffusion_model.joint_blocks.0.x_block.attn.qkv", "does not fit FluxPipeline"),
        ("sdxl", "diffusion_model.double_blocks.0.img_attn.qkv", "does not fit StableDiffusionXLPipeline"),
        ("sd15", "diffusion_model.double_blocks.0.img_attn.qkv", "does not fit StableDiffusionPipeline"),
    ],
)
@pytest.mark.parametrize("ends", DOWN_UP)
def test_formats_that_diffusers_does_not_read_are_named(
    family: str, layer: str, problem: str, ends: tuple[str, str], load_family: LoadFamily, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        fuse_lora(load_family(family), write(tmp_path / "l.safetensors", layer, *draw(32, 96), ends), 1.0)
