"""Checkpoints of open_clip's ViT models, in transformers' `CLIPModel`: open_clip needs torchvision, this does not.

The networks are the same; their tensors are called, cut and turned differently.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from popalign_core.evaluation.quality.scorer_files import wrong_keys

_PLACES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PLACES |= {f"{old}.{part}": f"{new}.{part}" for old, new in _NORMS.items() for part in ("weight", "bias")}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.?(weight|bias)")
_TRANSPOSED = ("visual.proj", "text_projection")


def load_open_clip_vit(state: Mapping[str, Tensor], path: Path, *, n_heads: int, activation: str) -> CLIPModel:
    """A `CLIPModel` with the weights of a state dict of open_clip.

    Args:
        state: As open_clip's `CLIP` saves it; all sizes are read off its tensors.
        path: Where it is from, for messages.
        n_heads: Of both towers; the tensors do not tell.
        activation: transformers' name of it: "gelu", or "quick_gelu" for the models that OpenAI trained.

    Raises:
        InputError: When the state dict is of something else.
    """
    unplaced = [name for name in state if name not in _PLACES and not _BLOCK.fullmatch(name)]
    if missing := sorted(set(_PLACES) - set(state)):
        raise wrong_keys(path, "a CLIP ViT of open_clip", missing, unplaced)
    model, report = CLIPModel.from_pretrained(
        None,
        config=_configuration(state, n_heads, activation),
        state_dict=dict(_renamed_tensors(state)),
        output_loading_info=True,
    )
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise wrong_keys(
            path, "a CLIP ViT of open_clip", *map(sorted, (report["missing_keys"], report["unexpected_keys"]))
        )
    return model.float()


def _renamed_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            # What is unknown keeps its name, and is refused.
            yield _PLACES.get(name, name), tensor.T.contiguous() if name in _TRANSPOSED else tensor
            continue
        tower = "vision_model" if block[1] else "text_model"
        home, inner, kind = f"{tower}.encoder.layers.{block[2]}", block[3].rstrip("._"), block[4]
        if inner == "attn.in_proj":
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{home}.self_attn.{letter}_proj.{kind}", part.clone()
        else:
            yield f"{home}.{_IN_BLOCK.get(inner, inner)}.{kind}", tensor


def _configuration(state: Mapping[str, Tensor], n_heads: int, activation: str) -> CLIPConfig:
    def tower(prefix: str, width: int) -> dict[str, int | str]:
        blocks = {name.removeprefix(prefix).split(".")[2] for name in state if name.startswith(f"{prefix}transformer.")}
        inner = state.get(f"{prefix}transformer.resblocks.0.mlp.c_fc.bias")
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width if inner is None else len(inner),
            "num_hidden_layers": len(blocks),
            "num_attention_heads": n_heads,
            "hidden_act": activation,
        }

    width, _, patch, _ = state["visual.conv1.weight"].shape
    n_places = len(state["visual.positional_embedding"]) - 1
    n_tokens, text_width = state["token_embedding.weight"].shape
    vision = tower("visual.", width) | {"patch_size": patch, "image_size": patch * round(n_places**0.5)}
    text = tower("", text_width) | {
        "vocab_size": n_tokens,
        "max_position_embeddings": len(state["positional_embedding"]),
        # CLIP's tokenizer has begin and end last; pooled is where the end is.
        "bos_token_id": n_tokens - 2,
        "eos_token_id": n_tokens - 1,
        "pad_token_id": n_tokens - 1,
    }
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=state["text_projection"].shape[1])
