"""A model folder as one file, under the names that Stability's own code gave to the weights (LDM, later SGM).

What differs is how layers are counted: there the blocks of a UNet are one list, here they are levels with layers.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core.errors import ConfigError
from popalign_core.models.local_models import MODEL_INDEX
from popalign_core.models.model_files import weights_stem
from popalign_core.models.weights_check import weight_files

if TYPE_CHECKING:
    from torch import Tensor

Named = Iterator[tuple[str, "Tensor"]]

_XL, _V1 = "StableDiffusionXLPipeline", "StableDiffusionPipeline"
_UNET_PLACES = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
_UNET_LAYERS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE_LAYERS = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm", "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k", "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
}  # fmt: skip
_OPEN_CLIP_LAYERS = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_OPEN_CLIP_PLACES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
}  # fmt: skip
_QUERIES = ("q_proj", "k_proj", "v_proj")


def write_single_file(folder: Path, file: Path) -> None:
    """Write a model folder as one file of safetensors, from which `from_single_file` of diffusers gives its tensors.

    Args:
        folder: Of a pipeline, as `write_whole_model` writes it.
        file: To write.

    Raises:
        ConfigError: As `check_single_file`, or when a layer has no place in the original code.
    """
    from safetensors.torch import save_file

    check_single_file(folder)
    weights = dict(_named(folder, _settings(folder / MODEL_INDEX)["_class_name"]))
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file, {"format": "pt"})


def check_single_file(folder: Path) -> None:
    """Refuse a model that has no form as one file, or none that is read back as it was.

    Raises:
        ConfigError: When it is neither an SDXL nor a Stable Diffusion 1.5, or a part is of another kind than theirs.
    """
    kind, fix = str(_settings(folder / MODEL_INDEX).get("_class_name")), "export a folder, without --single-file"
    if kind not in (_XL, _V1):
        raise ConfigError(f"single files are of SDXL or Stable Diffusion 1.5, and this is a {kind}; {fix}")
    unet, vae = _settings(folder / "unet" / "config.json"), _settings(folder / "vae" / "config.json")
    if vae.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise ConfigError(f"single files have an AutoencoderKL, and this model has {vae['_class_name']}; {fix}")
    if not isinstance(unet.get("layers_per_block", 2), int):
        raise ConfigError(f"the UNet has layers_per_block {unet['layers_per_block']!r}, not one number; {fix}")
    act = _settings(folder / "text_encoder" / "config.json").get("hidden_act", "quick_gelu")
    if kind == _V1 and act != "quick_gelu":
        raise ConfigError(f"the text encoder has hidden_act {act!r}: it is of Stable Diffusion 2, not 1.5; {fix}")


def _named(folder: Path, kind: str) -> Named:
    """All weights of a pipeline's folder by their original names."""
    unet = _settings(folder / "unet" / "config.json")
    for name, weight in _weights(folder / "unet", "diffusers"):
        yield f"model.diffusion_model.{_unet_name(name, unet)}", weight
    n_levels = len(_settings(folder / "vae" / "config.json").get("block_out_channels", (64,)))
    for name, weight in _weights(folder / "vae", "diffusers"):
        place = _vae_name(name, n_levels)
        # attention was written as convolutions of one pixel
        is_matrix = ".attn_1." in place and weight.ndim == 2
        yield f"first_stage_model.{place}", weight[..., None, None] if is_matrix else weight
    clip = "conditioner.embedders.0.transformer." if kind == _XL else "cond_stage_model.transformer."
    for name, weight in _weights(folder / "text_encoder", "transformers"):
        yield f"{clip}text_model.{name.removeprefix('text_model.')}", weight
    if kind == _XL:
        for name, weight in _open_clip(dict(_weights(folder / "text_encoder_2", "transformers"))):
            yield f"conditioner.embedders.1.model.{name}", weight


def _unet_name(name: str, config: dict[str, Any]) -> str:
    for here, there in _UNET_PLACES.items():
        if name.startswith(f"{here}."):
            end = name.removeprefix(f"{here}.")
            return f"{there}.{_layer(end) if 'resnets' in here else end}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnet|attention|downsampler|upsampler)s\.(\d+)\.(.+)", name)
    if found is None:
        raise ConfigError(f"the UNet has {name}, for which the original code has no place; export a folder")
    side, level, kind, layer, end = found[1], int(found[2]), found[3], int(found[4]), found[5]
    # a level going down is its layers and what halves the image; one going up has a layer more
    n_layers = config.get("layers_per_block", 2) + 1
    if kind == "downsampler":
        return f"input_blocks.{(level + 1) * n_layers}.0.op.{end.removeprefix('conv.')}"
    if kind == "upsampler":
        has_attention = "Attn" in config["up_block_types"][level]
        return f"output_blocks.{(level + 1) * n_layers - 1}.{1 + has_attention}.{end}"
    number = level * n_layers + layer
    block = f"input_blocks.{1 + number}" if side == "down" else f"output_blocks.{number}"
    return f"{block}.0.{_layer(end)}" if kind == "resnet" else f"{block}.1.{end}"


def _layer(end: str) -> str:
    """A layer of a residual block."""
    layer, _, tensor = end.rpartition(".")
    return f"{_UNET_LAYERS[layer]}.{tensor}"


def _vae_name(name: str, n_levels: int) -> str:
    for here, there in _VAE_LAYERS.items():
        name = re.sub(rf"(?<![\w]){re.escape(here)}(?=\.)", there, name)
    name = re.sub(r"\bdown_blocks\.(\d+)\.", r"down.\1.", name)
    # the decoder's levels are counted from the full image on, here and there from opposite ends
    name = re.sub(r"\bup_blocks\.(\d+)\.", lambda found: f"up.{n_levels - 1 - int(found[1])}.", name)
    name = re.sub(r"\bresnets\.(\d+)\.", r"block.\1.", name)
    return re.sub(r"\b(down|up)samplers\.0\.", r"\1sample.", name)


def _open_clip(weights: "dict[str, Tensor]") -> Named:
    """OpenCLIP keeps query, key and value in one tensor, and the projection transposed."""
    import torch

    weights = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    for name, weight in weights.items():
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == "text_projection.weight":
            yield "text_projection", weight.T
        elif layer is None:
            if name in _OPEN_CLIP_PLACES:
                yield _OPEN_CLIP_PLACES[name], weight
        elif layer[2] == "self_attn.q_proj":
            joined = torch.cat([weights[name.replace("q_proj", query)] for query in _QUERIES])
            yield f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}", joined
        elif layer[2] in _OPEN_CLIP_LAYERS:
            yield f"transformer.resblocks.{layer[1]}.{_OPEN_CLIP_LAYERS[layer[2]]}.{layer[3]}", weight


def _weights(folder: Path, library: str) -> Named:
    from safetensors.torch import load_file

    for file in weight_files(folder, weights_stem(library)):
        if file.suffix == ".safetensors":
            yield from ((name, weight) for name, weight in load_file(file).items() if not name.endswith("position_ids"))


def _settings(file: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return settings
