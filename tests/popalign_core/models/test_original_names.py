"""Names of the first code: diffusers' own reader gives every tensor back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from popalign_core.errors import ConfigError
from popalign_core.models.original_names import UNET_PREFIX, original_state_dict
from tests.support.tiny_models import make_original_sdxl, make_sd3, make_sd15

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def make_sd2() -> Any:
    """SD 2.x is SD 1.5 with OpenCLIP's text encoder."""
    pipeline = make_sd15()
    pipeline.text_encoder.config.hidden_act = "gelu"
    return pipeline


@pytest.mark.parametrize("make", [make_original_sdxl, make_sd15, make_sd2])
def test_diffusers_reads_the_same_tensors(make: Callable[[], Any], tmp_path: Path) -> None:
    pipeline = make()
    pipeline.save_pretrained(tmp_path / "folder")
    save_file(original_state_dict(pipeline), tmp_path / "single.safetensors")
    again = type(pipeline).from_single_file(
        str(tmp_path / "single.safetensors"), config=str(tmp_path / "folder"), local_files_only=True
    )
    compared = 0
    for name in PARTS:
        if (part := getattr(pipeline, name, None)) is not None:
            found = getattr(again, name).state_dict()
            assert found.keys() == part.state_dict().keys()
            for key, expected in part.state_dict().items():
                assert torch.equal(found[key], expected), (name, key)
                compared += 1
    assert compared > 100


def test_the_published_layout_of_sdxl_has_its_published_names() -> None:
    """Three levels of two layers, the last two with attention: names of stabilityai/stable-diffusion-xl-base-1.0."""
    pipeline = make_original_sdxl()
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    pipeline.register_modules(unet=unet)
    names = {name.removeprefix(UNET_PREFIX) for name in original_state_dict(pipeline) if name.startswith(UNET_PREFIX)}
    assert len(names) == len(unet.state_dict()) == 1680
    assert names >= {
        "input_blocks.3.0.op.weight",
        "input_blocks.6.0.op.bias",
        "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight",
        "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
        "output_blocks.2.2.conv.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.8.0.skip_connection.weight",
        "label_emb.0.2.bias",
    }


def test_other_families_are_refused() -> None:
    with pytest.raises(ConfigError, match="not of StableDiffusion3Pipeline; export a folder"):
        original_state_dict(make_sd3())
