"""A Stable Diffusion pipeline's weights under the names of its first code (LDM, SGM), as single files have them."""

import re
from typing import TYPE_CHECKING, Any

from popalign_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def original_state_dict(pipeline: Any) -> "dict[str, Tensor]":
    """The weights of a whole SDXL, SD 1.x or SD 2.x pipeline by their original names.

    diffusers' `from_single_file` gives the same tensors back.

    Raises:
        ConfigError: When it is of another family.
    """
    kind = type(pipeline).__name__
    if kind not in ("StableDiffusionXLPipeline", "StableDiffusionPipeline"):
        raise ConfigError(f"single files are written of SDXL and SD 1.x or 2.x, not of {kind}; export a folder")
    unet, vae = pipeline.unet, pipeline.vae
    found = {UNET_PREFIX + _unet_name(name, unet): weight for name, weight in unet.state_dict().items()}
    n_levels = len(vae.config.block_out_channels)
    for name, weight in vae.state_dict().items():
        new = _vae_name(name, n_levels)
        # the first code had its attention's layers as convolutions of 1 px
        is_linear = new.startswith(("encoder.mid.attn_1", "decoder.mid.attn_1")) and weight.ndim == 2
        found[VAE_PREFIX + new] = weight[:, :, None, None] if is_linear else weight
    if kind == "StableDiffusionXLPipeline":
        found |= _clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.text_model.")
        found |= _open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    elif pipeline.text_encoder.config.hidden_act == "gelu":  # OpenCLIP's, of SD 2.x
        found |= _open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        found |= _clip(pipeline.text_encoder, "cond_stage_model.transformer.text_model.")
    return {name: weight.contiguous() for name, weight in found.items()}


def _unet_name(name: str, unet: Any) -> str:
    n_layers = unet.config.layers_per_block
    for old, new in _UNET_TOP.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, number, rest = match.groups()
        place = "middle_block.1" if kind == "attentions" else f"middle_block.{2 * int(number)}"
        return f"{place}.{_in_resnet(rest) if kind == 'resnets' else rest}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if match is None:
        raise ConfigError(f"the UNet's weight {name!r} has no name in the original code; export a folder")
    side, level, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = level * (n_layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + n_layers + 1}.0.{rest.replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        has_attention = bool(getattr(unet.up_blocks[level], "attentions", None))
        return f"output_blocks.{first + n_layers}.{2 if has_attention else 1}.{rest}"
    block = f"input_blocks.{first + layer + 1}" if side == "down" else f"output_blocks.{first + layer}"
    return f"{block}.0.{_in_resnet(rest)}" if kind == "resnets" else f"{block}.1.{rest}"


def _in_resnet(rest: str) -> str:
    layer, _, end = rest.rpartition(".")
    return f"{_UNET_RESNET[layer]}.{end}"


def _vae_name(name: str, n_levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if match := re.match(r"(.+)mid_block\.attentions\.0\.(.+)\.(weight|bias)$", name):
        return f"{match[1]}mid.attn_1.{_VAE_ATTENTION[match[2]]}.{match[3]}"
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    # the decoder's levels count from the largest image
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda found: f"up.{n_levels - 1 - int(found[1])}.block.{found[2]}", name
    )
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{n_levels - 1 - int(found[1])}.upsample", name)


def _clip(encoder: Any, prefix: str) -> "dict[str, Tensor]":
    """transformers' CLIP is the original's; newer versions leave out the prefix."""
    weights = encoder.state_dict().items()
    return {prefix + name.removeprefix("text_model."): weight for name, weight in weights}


def _open_clip(encoder: Any, prefix: str) -> "dict[str, Tensor]":
    """OpenCLIP's names: query, key and value lie in one tensor, and the projection is transposed."""
    import torch

    weights = {name.removeprefix("text_model."): weight for name, weight in encoder.state_dict().items()}
    found = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
    }
    if "text_projection.weight" in weights:
        found["text_projection"] = weights["text_projection.weight"].T
    for name in weights:
        if (match := re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", name)) is None:
            continue
        block, layer, end = f"transformer.resblocks.{match[1]}", match[2], match[3]
        if layer == "self_attn.q_proj":
            parts = [weights[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[f"{block}.attn.in_proj_{end}"] = torch.cat(parts)
        elif layer in _OPEN_CLIP:
            found[f"{block}.{_OPEN_CLIP[layer]}.{end}"] = weights[name]
    return {prefix + name: weight for name, weight in found.items()}
