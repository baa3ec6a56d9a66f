"""One file under the original names: diffusers' own reader gives every tensor back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from popalign_core.errors import ConfigError
from popalign_core.models.single_file_export import check_single_file, write_single_file

WIDTH = 32


def make_encoder(*, projected: bool, n_layers: int = 2) -> Any:
    width = 2 * WIDTH if projected else WIDTH  # by it diffusers tells SDXL's encoders apart
    config = CLIPTextConfig(
        vocab_size=28,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=WIDTH,
        hidden_act="gelu" if projected else "quick_gelu",
        bos_token_id=26,
        eos_token_id=27,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def make_pipeline(*, is_xl: bool) -> Any:
    torch.manual_seed(0)
    attends = ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    if not is_xl:
        attends.append(attends.pop(0))
    channels = (32, 64, 64)
    added: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
        "use_linear_projection": True,
    }
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        layers_per_block=2,
        norm_num_groups=8,
        attention_head_dim=4,
        down_block_types=tuple(attends),
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(attends)),
        cross_attention_dim=3 * WIDTH if is_xl else WIDTH,
        **(added if is_xl else {}),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
    )
    words = {chr(97 + number): number for number in range(26)} | {"<|startoftext|>": 26, "<|endoftext|>": 27}
    parts: dict[str, Any] = {
        "unet": unet,
        "vae": vae,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        "text_encoder": make_encoder(projected=False),
        "tokenizer": CLIPTokenizer(vocab=words, merges=[], model_max_length=16),
    }
    if not is_xl:
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    # by the tenth block of the second encoder diffusers knows an SDXL
    parts |= {"text_encoder_2": make_encoder(projected=True, n_layers=10), "tokenizer_2": parts["tokenizer"]}
    return StableDiffusionXLPipeline(**parts, add_watermarker=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_xl", [True, False])
def test_diffusers_reads_the_same_tensors(is_xl: bool, tmp_path: Path) -> None:
    pipeline, folder, file = make_pipeline(is_xl=is_xl), tmp_path / "folder", tmp_path / "one.safetensors"
    pipeline.save_pretrained(folder, safe_serialization=True)
    write_single_file(folder, file)
    read = type(pipeline).from_single_file(str(file), config=str(folder), local_files_only=True, dtype=torch.float32)
    parts = ("unet", "vae", "text_encoder", *(["text_encoder_2"] if is_xl else []))
    for part in parts:
        expected, found = getattr(pipeline, part).state_dict(), getattr(read, part).state_dict()
        assert found.keys() == expected.keys()
        assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == [], part
    n_read = sum(weight.numel() for weight in load_file(file).values())
    assert n_read == sum(weight.numel() for part in parts for weight in getattr(pipeline, part).state_dict().values())


def test_names_are_the_original_ones(tmp_path: Path) -> None:
    """A few, as the published files have them."""
    make_pipeline(is_xl=True).save_pretrained(tmp_path / "folder", safe_serialization=True)
    write_single_file(tmp_path / "folder", tmp_path / "one.safetensors")
    assert {
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.2.2.conv.weight",
        "model.diffusion_model.output_blocks.8.0.out_layers.3.weight",
        "model.diffusion_model.label_emb.0.2.bias",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.up.2.block.0.conv1.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.quant_conv.weight",
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
        "conditioner.embedders.1.model.transformer.resblocks.9.attn.in_proj_weight",
        "conditioner.embedders.1.model.text_projection",
    } <= load_file(tmp_path / "one.safetensors").keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sd3", "are of SDXL or Stable Diffusion 1.5, and this is a StableDiffusion3Pipeline; export a folder"),
        ("flux-dev", "this is a FluxPipeline"),
        ("sdxl", "this model has AutoencoderTiny"),
    ],
)
def test_other_models_are_refused(family_folder: Callable[[str], Path], name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_single_file(family_folder(name))


def test_a_stable_diffusion_2_is_no_1(tmp_path: Path) -> None:
    make_pipeline(is_xl=False).save_pretrained(tmp_path, safe_serialization=True)
    settings = json.loads((tmp_path / "text_encoder" / "config.json").read_text())
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(settings | {"hidden_act": "gelu"}))
    with pytest.raises(ConfigError, match="hidden_act 'gelu': it is of Stable Diffusion 2"):
        check_single_file(tmp_path)
