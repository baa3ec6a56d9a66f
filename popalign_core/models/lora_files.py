"""LoRA files in the formats there are, read into weights by diffusers' names with their scales multiplied in.

They say how strong they are in three places: kohya's, and some of peft's, have an alpha a layer in the file; diffusers'
own keep it in the metadata, which diffusers reads; peft's adapter folders have an adapter_config.json.
"""

import math
import re
from pathlib import Path
from typing import Any, Final

from popalign_core.documents import read_json
from popalign_core.errors import MissingWeightsError
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
_TEXT_ENCODERS: Final = {"CLIPTextModel": "text_encoder", "CLIPTextModelWithProjection": "text_encoder_2"}


def adapter_settings(file: Path) -> Path | None:
    """The adapter_config.json that belongs to a LoRA file; None where it is not one of peft's adapter folders."""
    settings = file.with_name(_ADAPTER_SETTINGS)
    return settings if file.name == ADAPTER_FILE and settings.is_file() else None


def read_lora(pipeline: Any, file: Path) -> tuple[dict[str, Any], Any]:
    """Weights by diffusers' names, and the metadata of diffusers' own format.

    Args:
        pipeline: Of the class that the LoRA is for.
        file: In diffusers', kohya's or peft's format.

    Raises:
        MissingWeightsError: When the file is damaged.
        DamagedWeightsError: When adapter_config.json is.
        ValueError: When it is no LoRA, or one of a kind that diffusers cannot load; the message says which.
    """
    content = _read_tensors(file)
    strange = [name for name in content if not ("lora" in name or name.endswith(".alpha"))]
    if strange:
        raise ValueError(f"{strange[0]} is not of a LoRA")
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
        raise MissingWeightsError(f"the LoRA {file} is no whole safetensors file: {error}; get it again") from error
    if not content:
        raise ValueError("it is empty")
    if broken := [name for name, weight in content.items() if not weight.isfinite().all()]:
        raise ValueError(f"{broken[0]} has values that are not finite")
    if any("dora_scale" in name or "lora_magnitude_vector" in name for name in content):
        raise ValueError("it is a DoRA, whose scales diffusers drops")
    return content


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
