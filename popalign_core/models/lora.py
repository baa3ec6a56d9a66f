"""A LoRA fused into a pipeline's weights, so that sampling and training see a plain model."""

from pathlib import Path
from typing import Any

from popalign_core.errors import ConfigError, MissingWeightsError

_LONGEST_REASON = 300  # diffusers lists every key


def fuse_lora(pipeline: Any, file: Path, scale: float) -> None:
    """Add `scale` times a LoRA to the weights of the parts that are loaded (Hu et al. 2021, arXiv:2106.09685, Eq. 3).

    Of a pipeline without text encoders its denoiser changes alone, and the other way round. diffusers' own
    `load_lora_weights` needs all parts there, and only warns of weights that it drops: here nothing is dropped.

    Args:
        pipeline: Of a class that can take LoRAs; changed in place, on the CPU or elsewhere.
        file: In diffusers' or kohya's format, safetensors.
        scale: 1 is the LoRA as trained.

    Raises:
        MissingWeightsError: When the file is damaged.
        ConfigError: When it is another model's, or no LoRA that diffusers can load.
    """
    try:
        weights, metadata = _read(pipeline, file)
        for part in dict.fromkeys(key.split(".")[0] for key in weights):
            _load_part(pipeline, part, weights, metadata)
        # all parts by name: left to itself FLUX's pipeline drops what is its text encoder's
        pipeline.fuse_lora(list(pipeline._lora_loadable_modules), lora_scale=scale, safe_fusing=True)
        pipeline.unload_lora_weights()
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        # diffusers looks for the layers by name, and fails at the first step after none was found
        said = "its layers are not this model's" if isinstance(error, LookupError) else " ".join(str(error).split())
        raise ConfigError(
            f"the LoRA {file} does not fit {type(pipeline).__name__}: {said[:_LONGEST_REASON]}; "
            "give one that was trained on this model"
        ) from error


def _read(pipeline: Any, file: Path) -> tuple[dict[str, Any], Any]:
    """Weights by diffusers' names, and the metadata of diffusers' own format."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = load_file(file)
    except (OSError, SafetensorError) as error:
        raise MissingWeightsError(f"the LoRA {file} is no whole safetensors file: {error}; get it again") from error
    if not content:
        raise ValueError("it is empty")
    if any("dora_scale" in name for name in content):
        raise ValueError("it is a DoRA, whose scales diffusers drops")
    is_kohya = any(name.endswith(".alpha") for name in content)
    if strange := [name for name in content if not ("lora" in name or (is_kohya and name.endswith(".alpha")))]:
        raise ValueError(f"{strange[0]} is not of a LoRA")
    # kohya's SDXL names follow the blocks of Stability's own code; the UNet's configuration says which ones they are
    unet_config = getattr(getattr(pipeline, "unet", None), "config", None)
    weights, *_, metadata = pipeline.lora_state_dict(
        _without_alphas(content) if is_kohya else file,
        unet_config=unet_config,
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
    )
    return weights, metadata


def _without_alphas(content: dict[str, Any]) -> dict[str, Any]:
    """Alphas multiplied into the weights, in float32: where layers differ in alpha, diffusers 0.42 mixes them up."""
    weights = {name: weight.float() for name, weight in content.items() if not name.endswith(".alpha")}
    for name in content.keys() - weights.keys():
        layer = name.removesuffix(".alpha")
        if f"{layer}.lora_down.weight" not in weights:
            raise ValueError(f"{layer} has no lora_down: it is a LoKr or a LoHa, not a LoRA")
        rank = len(weights[f"{layer}.lora_down.weight"])
        weights[f"{layer}.lora_up.weight"] *= content[name].item() / rank
    return weights


def _load_part(pipeline: Any, part: str, weights: dict[str, Any], metadata: Any) -> None:
    if part not in pipeline._lora_loadable_modules:
        raise ValueError(f"it has weights for {part!r}, which this pipeline does not have")
    module = getattr(pipeline, part)
    if module is None:
        return
    options = {"network_alphas": None, "metadata": metadata, "low_cpu_mem_usage": True}
    if part.startswith("text_encoder"):
        pipeline.load_lora_into_text_encoder(weights, text_encoder=module, prefix=part, **options)
    else:
        module.load_lora_adapter(weights, prefix=part, **options)
    n_given = sum(key.startswith(f"{part}.") for key in weights)
    n_loaded = sum(".lora_" in name for name, _ in module.named_parameters())
    if n_loaded != n_given:
        raise ValueError(f"{n_loaded} of its {n_given} tensors for {part} have a place in the model")
