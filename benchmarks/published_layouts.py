"""Models with the layout of the published ones and random weights.

Each network is built without storage, for the names and shapes of its tensors alone; `random_weights` writes these.
"""

import gzip
import json
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from random_weights import write_network

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Scale:
    """How much of the published size.

    Attributes:
        divisor: Of widths.
        depth: Divisor of numbers of layers.
    """

    divisor: int = 1
    depth: int = 1

    def width(self, published: int) -> int:
        """A width, whole in the groups of 32 channels that are normalised together."""
        return published if self.divisor == 1 else max(32, round(published / self.divisor / 32) * 32)

    def widths(self, *published: int) -> tuple[int, ...]:
        """Several of them."""
        return tuple(self.width(each) for each in published)

    def heads(self, published: int, head: int = 64) -> int:
        """Heads of a width: of 64 as published, of 32 below."""
        return published // head if self.divisor == 1 else self.width(published) // 32

    def layers(self, published: int) -> int:
        """A number of layers."""
        return max(1, round(published / self.depth))


SCALES = {"full": Scale(), "quarter": Scale(4), "small": Scale(10, 8)}
"""`quarter` has a quarter of the widths, so about a sixteenth of the weights, and all the layers."""

CLIP_WORDS, T5_WORDS = 49408, 32128
"""Embeddings of the published text encoders."""
Parts = dict[str, Any]
"""Name in the pipeline -> network without storage, tokenizer or scheduler."""


def _sdxl(scale: Scale, tokenizer: Any) -> Parts:
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    first, second = (_clip(scale, tokenizer, *given) for given in ((768, 12, False), (1280, 32, True)))
    widths = (320, 640, 1280)
    unet = _without_storage(
        UNet2DConditionModel,
        sample_size=128,
        block_out_channels=scale.widths(*widths),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=tuple(map(scale.layers, (1, 2, 10))),
        attention_head_dim=tuple(map(scale.heads, widths)),
        cross_attention_dim=scale.width(768) + scale.width(1280),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=scale.width(1280) + 6 * 256,
    )
    scheduler = EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading")
    return {
        **{"text_encoder": first, "text_encoder_2": second, "tokenizer": tokenizer, "tokenizer_2": tokenizer},
        **{"unet": unet, "vae": _vae(scale, 4, 0.13025, sample_size=1024, force_upcast=True), "scheduler": scheduler},
    }


def _sd15(scale: Scale, tokenizer: Any) -> Parts:
    from diffusers import PNDMScheduler, UNet2DConditionModel

    unet = _without_storage(
        UNet2DConditionModel,
        sample_size=64,
        block_out_channels=scale.widths(320, 640, 1280, 1280),
        attention_head_dim=8,
        cross_attention_dim=scale.width(768),
    )
    scheduler = PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False)
    return {
        **{"text_encoder": _clip(scale, tokenizer, 768, 12, False), "tokenizer": tokenizer, "unet": unet},
        **{"vae": _vae(scale, 4, 0.18215, sample_size=512), "scheduler": scheduler},
    }


def _sd3(scale: Scale, tokenizer: Any) -> Parts:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    first, second = (_clip(scale, tokenizer, *given, True) for given in ((768, 12), (1280, 32)))
    third, words = _t5(scale)
    transformer = _without_storage(
        SD3Transformer2DModel,
        sample_size=128,
        num_layers=scale.layers(24),
        num_attention_heads=scale.heads(1536),
        attention_head_dim=64 if scale.divisor == 1 else 32,
        caption_projection_dim=scale.width(1536),
        joint_attention_dim=scale.width(4096),
        pooled_projection_dim=scale.width(768) + scale.width(1280),
        out_channels=16,
        pos_embed_max_size=192,
    )
    return {
        **{"text_encoder": first, "text_encoder_2": second, "text_encoder_3": third},
        **{"tokenizer": tokenizer, "tokenizer_2": tokenizer, "tokenizer_3": words, "transformer": transformer},
        "vae": _vae(scale, 16, 1.5305, sample_size=1024, shift_factor=0.0609),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _flux(scale: Scale, tokenizer: Any) -> Parts:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    second, words = _t5(scale)
    transformer = _without_storage(
        FluxTransformer2DModel,
        in_channels=64,
        num_layers=scale.layers(19),
        num_single_layers=scale.layers(38),
        num_attention_heads=scale.heads(3072, 128),
        attention_head_dim=128 if scale.divisor == 1 else 32,
        joint_attention_dim=scale.width(4096),
        pooled_projection_dim=scale.width(768),
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56) if scale.divisor == 1 else (4, 14, 14),
    )
    return {
        **{"text_encoder": _clip(scale, tokenizer, 768, 12, False), "text_encoder_2": second},
        **{"tokenizer": tokenizer, "tokenizer_2": words, "transformer": transformer},
        "vae": _vae(scale, 16, 0.3611, sample_size=1024, shift_factor=0.1159),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }


FAMILIES: dict[str, tuple[str, Callable[[Scale, Any], Parts]]] = {
    "sdxl": ("StableDiffusionXLPipeline", _sdxl),
    "sd15": ("StableDiffusionPipeline", _sd15),
    "sd3": ("StableDiffusion3Pipeline", _sd3),
    "flux": ("FluxPipeline", _flux),
}
"""The published models' pipelines and parts: SDXL base, Stable Diffusion 1.5, 3 medium, FLUX.1-dev."""


def write_model(family: str, scale: Scale, folder: Path) -> dict[str, int]:
    """Write a pipeline that diffusers loads.

    Args:
        family: Of `FAMILIES`.
        scale: How large.
        folder: That is to hold it.

    Returns:
        Part -> its number of parameters.
    """
    pipeline, parts = FAMILIES[family][0], build_parts(family, scale)
    index: dict[str, Any] = {"_class_name": pipeline}
    for name, part in parts.items():
        library = "transformers" if name.startswith(("text_encoder", "tokenizer")) else "diffusers"
        index[name] = [library, type(part).__name__]
        if isinstance(part, torch.nn.Module):
            write_network(part, folder / name, "model" if library == "transformers" else "diffusion_pytorch_model")
        else:
            part.save_pretrained(folder / name)
    if family == "sd15":  # there is no layout to rehearse in a checker that the configuration names
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return count_parameters(parts)


def build_parts(family: str, scale: Scale) -> Parts:
    """The parts of a pipeline, its networks without storage.

    Args:
        family: Of `FAMILIES`.
        scale: How large.
    """
    return FAMILIES[family][1](scale, make_clip_tokenizer(CLIP_WORDS if scale.divisor == 1 else 0))


def count_parameters(parts: Parts) -> dict[str, int]:
    """Network -> its number of parameters."""
    networks = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    return {name: sum(each.numel() for each in network.parameters()) for name, network in networks.items()}


def make_clip_tokenizer(least: int = 0) -> Any:
    """CLIP's own, of the vocabulary that lies in open_clip's package, where that is installed; else one of bytes.

    Args:
        least: How many words it must have: one of bytes is filled up with words that no text has.
    """
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in _byte_letters()]
    merges = [tuple(line.split()) for line in _published_merges()]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    pieces += [f"<|unused{number}|>" for number in range(len(pieces), least - 2)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=77)


def _byte_letters() -> Iterator[int]:
    """A printable character for each of 256 bytes: those that print are themselves, the others follow at 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from printable
    yield from range(256, 256 + 256 - len(printable))


def _published_merges() -> Sequence[str]:
    """The lines of CLIP's merges, in the wheel of open_clip_torch; none without it. Imports no open_clip."""
    package = find_spec("open_clip")
    places = package.submodule_search_locations if package is not None else None
    file = Path(places[0], "bpe_simple_vocab_16e6.txt.gz") if places else None
    if file is None or not file.is_file():
        return ()
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    return lines[1 : 49152 - 256 - 2 + 1]  # CLIP reads as many of them as its vocabulary has room for


def _without_storage(make: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """A network on the device that holds nothing."""
    with torch.device("meta"):
        return make(*given, **options)


def _clip(scale: Scale, tokenizer: Any, width: int, n_layers: int, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    size = scale.width(width)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=4 * size,
        projection_dim=size,
        num_hidden_layers=scale.layers(n_layers),
        num_attention_heads=scale.heads(width),
        hidden_act="quick_gelu" if width == 768 else "gelu",
        **ids,
    )
    return _without_storage(CLIPTextModelWithProjection if projected else CLIPTextModel, config)


def _t5(scale: Scale) -> tuple[Any, Any]:
    """T5 XXL's encoder, with letters for words."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    if scale.divisor == 1:
        pieces += [(f"<unused{number}>", -9.0) for number in range(len(pieces), T5_WORDS)]
    config = T5Config(
        vocab_size=len(pieces),
        d_model=scale.width(4096),
        d_ff=scale.width(10240),
        d_kv=64,
        num_layers=scale.layers(24),
        num_heads=max(1, 64 // scale.divisor),
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return _without_storage(T5EncoderModel, config), T5Tokenizer(vocab=pieces, extra_ids=0)


def _vae(scale: Scale, latent_channels: int, scaling_factor: float, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    quantised = {} if latent_channels == 4 else {"use_quant_conv": False, "use_post_quant_conv": False}
    return _without_storage(
        AutoencoderKL,
        block_out_channels=scale.widths(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        **quantised,
        **options,
    )
