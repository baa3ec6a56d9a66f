"""LoRA files in the formats there are, read into weights by diffusers' names with their scales multiplied in.

They say how strong they are in three places: kohya's, and some of peft's, have an alpha a layer in the file; diffusers'
own keep it in the metadata, which diffusers reads; peft's adapter folders have an adapter_config.json.
"""

import math
import re
from pathlib import Path
from typing import Any, Final

from popalign_core.documents import read_json
from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.models.config_fit import is_number
from popalign_core.models.weights_check import PartFolder

ADAPTER_FILE: Final = "adapter_model.safetensors"
_ADAPTER_SETTINGS: Final = "adapter_config.json"
_PEFT_PREFIX: Final = "base_model.model."
_DOWN_UP: Final = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
)
_OTHER_BASE: Final = re.compile("pissa|olora|corda|loftq|lora_ga")
"""Of `init_lora_weights`: these change the base's weights, so that the adapter is none of the base as it was."""
_MUST_BE_OFF: Final = (
    "use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication", "use_qalora", "loftq_config",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_bdlora", "kasa_config",
    "velora_config", "monteclora_config", "arrow_config",
)  # fmt: skip
_OF_COMFY: Final = re.compile(
    r"(diffusion_model|text_encoders\.clip_[lg](?:\.transformer)?)\.(.+?)"
    r"\.(?:alpha|(?:lora_|lora\.)(?:(down|A)|(up|B))(?:\.default)?\.weight)"
)
"""ComfyUI's names: a part, a layer by the names of the model's first code, down or A, up or B."""
_KOHYAS_PARTS: Final = {"diffusion_model": "unet", "text_encoders.clip_l": "te1", "text_encoders.clip_g": "te2"}
_OF_T5: Final = re.compile(r"lora_te3_|text_encoders\.t5|lora_te2_encoder_block_")
_OF_FIRST_CODE: Final = ("lora_unet_", "lora_te", "diffusion_model.", "text_encoders.")
_TEXT_ENCODERS: Final = {"CLIPTextModel": "text_encoder", "CLIPTextModelWithProjection": "text_encoder_2"}


def adapter_settings(file: Path) -> Path | None:
    """The adapter_config.json that belongs to a LoRA file; None where it is not one of peft's adapter folders."""
    settings = file.with_name(_ADAPTER_SETTINGS)
    return settings if file.name == ADAPTER_FILE and settings.is_file() else None


def read_lora(pipeline: Any, file: Path) -> tuple[dict[str, Any], Any]:
    """Weights by diffusers' names, and the metadata of diffusers' own format.

    Args:
        pipeline: Of the class that the LoRA is for.
        file: In diffusers', kohya's, ComfyUI's or peft's format.

    Raises:
        MissingWeightsError: When the file is damaged.
        ConfigError: When it is in a format that diffusers cannot read for this pipeline.
        DamagedWeightsError: When adapter_config.json is.
        ValueError: When it is no LoRA, or one of a kind that diffusers cannot load; the message says which.
    """
    content = _read_tensors(file)
    strange = [name for name in content if not ("lora" in name or name.endswith(".alpha"))]
    if strange:
        raise ValueError(f"{strange[0]} is not of a LoRA")
    _check_format(pipeline, file, content)
    content = {_kohyas_name(name): weight for name, weight in content.items()}
    named = {_diffusers_name(pipeline, name): weight for name, weight in content.items()}
    metadata = None
    if any(_PEFT_PREFIX in name for name in content):
        scaled = _from_peft(pipeline, file, content)
    elif any(name.endswith(".alpha") for name in content):
        scaled = _with_alphas(named)
    else:
        scaled, metadata = named, _read_metadata(file)
    # kohya's SDXL names follow the blocks of Stability's own code; the UNet's configuration says which ones they are
    unet_config = getattr(getattr(pipeline, "unet", None), "config", None)
    weights, *_ = pipeline.lora_state_dict(
        scaled, unet_config=unet_config, use_safetensors=True, local_files_only=True, return_lora_metadata=True
    )
    return weights, metadata


def _read_metadata(file: Path) -> Any:
    """Scales and ranks as diffusers saves them; None where it did not."""
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        text = (content.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    metadata = None if text is None else read_json(text)
    if not isinstance(metadata, dict | None):
        raise ValueError(f"its {LORA_ADAPTER_METADATA_KEY} is {text:.60}, not an object")
    return metadata


def _read_tensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # of float8 torch knows little more than how to store it
        content = {
            name: weight if weight.element_size() > 1 else weight.float() for name, weight in load_file(file).items()
        }
    except (OSError, SafetensorError) as error:
        raise MissingWeightsError(
            f"the LoRA {file} is not a complete safetensors file: {error}; get it again"
        ) from error
    if not content:
        raise ValueError("it is empty")
    if broken := [name for name, weight in content.items() if not weight.isfinite().all()]:
        raise ValueError(f"{broken[0]} has values that are not finite")
    if any("dora_scale" in name or "lora_magnitude_vector" in name for name in content):
        raise ValueError("it is a DoRA, whose scales diffusers drops")
    return content


def _check_format(pipeline: Any, file: Path, content: dict[str, Any]) -> None:
    """diffusers reads SD3 by its own names alone, and drops a T5's weights with no more than a notice."""
    first = next((name for name in content if name.startswith(_OF_FIRST_CODE)), None)
    if first is not None and type(pipeline).__name__.startswith("StableDiffusion3"):
        maker = "kohya's" if first.startswith("lora_") else "ComfyUI's"
        raise ConfigError(
            f"the LoRA {file} has {maker} names for SD3, such as {first}, which diffusers does not read; convert it to "
            "names such as transformer.transformer_blocks.0.attn.to_q.lora_A.weight: joint_blocks are "
            "transformer_blocks, and the rows of a qkv are to_q, to_k and to_v"
        )
    if of_t5 := [name for name in content if _OF_T5.match(name)]:
        raise ConfigError(
            f"the LoRA {file} has {len(of_t5)} tensors for a T5, such as {of_t5[0]}, which diffusers does not read; "
            "train one without the T5, or take these out"
        )


def _kohyas_name(name: str) -> str:
    """Of ComfyUI's names, which diffusers reads as kohya writes them; others stay as they are."""
    if (match := _OF_COMFY.fullmatch(name)) is None:
        return name
    part, layer, is_down, is_up = match.groups()
    end = "lora_down.weight" if is_down else "lora_up.weight" if is_up else "alpha"
    return f"lora_{_KOHYAS_PARTS[part.removesuffix('.transformer')]}_{layer.replace('.', '_')}.{end}"


def _diffusers_name(pipeline: Any, name: str) -> str:
    """Names that begin with a part of the pipeline end as diffusers' do, which loads no others without a word."""
    if name.split(".")[0] not in pipeline._lora_loadable_modules or _PEFT_PREFIX in name:
        return name
    for old, new in ((".lora_down", ".lora_A"), (".lora_up", ".lora_B")):
        name = name.replace(f"{old}.", f"{new}.")
    return re.sub(r"(\.lora_[AB])\.default\.weight$", r"\1.weight", name)


def _with_alphas(content: dict[str, Any]) -> dict[str, Any]:
    """Alphas multiplied into the weights, in float32: where layers differ in alpha, diffusers 0.42 mixes them up."""
    weights = {name: weight.float() for name, weight in content.items() if not name.endswith(".alpha")}
    for name in content.keys() - weights.keys():
        layer = name.removesuffix(".alpha")
        ends = [(down, up) for down, up in _DOWN_UP if layer + down in weights and layer + up in weights]
        if not ends:
            raise ValueError(f"{layer} has no lora_down or lora_A: it is a LoKr or a LoHa, not a LoRA")
        down, up = ends[0]
        if content[name].numel() != 1 or not content[name].item() > 0:
            raise ValueError(f"{name} is {content[name].tolist()!r:.60}; an alpha is one number above 0")
        weights[layer + up] *= content[name].item() / len(weights[layer + down])
    return weights


def _from_peft(pipeline: Any, file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """peft's names and scales (alpha / r, or alpha / sqrt(r) with rslora), as diffusers'."""
    from peft.utils.other import get_pattern_key

    place = adapter_settings(file)
    if place is None:
        raise ValueError(
            f"its names are peft's, whose scale {_ADAPTER_SETTINGS} has; put that beside {ADAPTER_FILE}, or give both "
            "as one folder"
        )
    settings = _read_adapter_settings(PartFolder("the LoRA", file.parent, "get the adapter's folder again"))
    alphas, ranks = settings.get("alpha_pattern") or {}, settings.get("rank_pattern") or {}
    default_part = _part_of(pipeline, settings)
    weights = {}
    for name, weight in content.items():
        before, _, rest = name.partition(_PEFT_PREFIX)
        match = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", rest)
        if match is None:
            raise ValueError(f"{name} is not of a LoRA of linear or convolution layers")
        layer, side = match[1], match[2]
        alpha = alphas.get(get_pattern_key(alphas.keys(), layer), settings["lora_alpha"])
        rank = ranks.get(get_pattern_key(ranks.keys(), layer), settings["r"])
        if (found := weight.shape[0 if side == "A" else 1]) != rank:
            raise ValueError(f"{name} has rank {found}, {_ADAPTER_SETTINGS} says {rank}")
        scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        part = before.rstrip(".") or default_part
        weights[f"{part}.{layer}.lora_{side}.weight"] = weight.float() * (scale if side == "B" else 1)
    return weights


def _read_adapter_settings(part: PartFolder) -> dict[str, Any]:
    settings = part.read_settings(_ADAPTER_SETTINGS)
    if (kind := settings.get("peft_type")) != "LORA":
        raise ValueError(f"{_ADAPTER_SETTINGS} has peft_type {kind!r}, not LORA")
    for name in _MUST_BE_OFF:
        if settings.get(name):
            raise ValueError(f"{_ADAPTER_SETTINGS} has {name} {settings[name]!r}, which is not supported")
    if settings.get("bias", "none") != "none":
        raise ValueError(f"{_ADAPTER_SETTINGS} has bias {settings['bias']!r}; biases cannot be fused in, only 'none'")
    if isinstance(start := settings.get("init_lora_weights"), str) and _OTHER_BASE.match(start):
        raise ValueError(
            f"{_ADAPTER_SETTINGS} has init_lora_weights {start!r}, which changed the base; convert it to a plain LoRA"
        )
    numbers = [(name, settings.get(name)) for name in ("r", "lora_alpha")]
    for pattern in ("rank_pattern", "alpha_pattern"):
        values = settings.get(pattern) or {}
        if not isinstance(values, dict):
            raise part.refusal(f"{_ADAPTER_SETTINGS} has {pattern} {values!r}, not an object")
        numbers += [(f"{pattern}.{name}", value) for name, value in values.items()]
        for name in values:  # peft reads them as regular expressions
            try:
                re.compile(name)
            except re.error as error:
                raise part.refusal(f"{_ADAPTER_SETTINGS} has {name!r} in {pattern}: {error}") from error
    for name, value in numbers:
        if not (is_number(value) and value > 0):
            raise part.refusal(f"{_ADAPTER_SETTINGS} has {name} {value!r}, not a number above 0")
    return settings


def _part_of(pipeline: Any, settings: dict[str, Any]) -> str:
    """An adapter of peft has the names of one network: the class that it was made for, else the denoiser."""
    mapping = settings.get("auto_mapping")
    made_for = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    denoiser = "transformer" if "transformer" in pipeline._lora_loadable_modules else "unet"
    return _TEXT_ENCODERS.get(str(made_for), denoiser)
