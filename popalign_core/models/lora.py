"""A LoRA fused into a pipeline's weights, so that sampling and training see a plain model."""

from collections import Counter
from pathlib import Path
from typing import Any

from popalign_core.errors import ConfigError
from popalign_core.models.lora_files import read_lora

_LONGEST_REASON = 300  # diffusers lists every key


def fuse_lora(pipeline: Any, file: Path, scale: float) -> None:
    """Add `scale` times a LoRA to the weights of the parts that are loaded (Hu et al. 2021, arXiv:2106.09685, Eq. 3).

    Of a pipeline without text encoders its denoiser changes alone, and the other way round. diffusers' own
    `load_lora_weights` needs all parts there, and only warns of weights that it drops: here nothing is dropped.

    Args:
        pipeline: Of a class that can take LoRAs; changed in place, on the CPU or elsewhere.
        file: In diffusers', kohya's, ComfyUI's or peft's format, safetensors.
        scale: 1 is the LoRA as trained.

    Raises:
        MissingWeightsError: When the file, or the adapter_config.json beside it, is damaged.
        ConfigError: When it is another model's, in a format that is not read for this one, or no LoRA.
    """
    try:
        weights, metadata = read_lora(pipeline, file)
        for part in dict.fromkeys(key.split(".")[0] for key in weights):
            _load_part(pipeline, part, weights, metadata)
        # all parts by name: left to itself FLUX's pipeline drops what is its text encoder's
        pipeline.fuse_lora(list(pipeline._lora_loadable_modules), lora_scale=scale, safe_fusing=True)
        pipeline.unload_lora_weights()
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        # diffusers looks for the layers by name, and fails at the first step after none was found
        reason = "its layers are not this model's" if isinstance(error, LookupError) else " ".join(str(error).split())
        raise ConfigError(
            f"the LoRA {file} does not fit {type(pipeline).__name__}: {reason[:_LONGEST_REASON]}; "
            "give one that was trained on this model"
        ) from error


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
    placed = {name: weight for name, weight in module.named_parameters() if ".lora_" in name}
    # what was not loaded is left without memory, and would be fused in with whatever lies there
    lacking = [name for name, weight in placed.items() if weight.is_meta]
    given = Counter(_print_of(weight, module.dtype) for key, weight in weights.items() if key.startswith(f"{part}."))
    loaded = Counter(_print_of(weight, module.dtype) for name, weight in placed.items() if name not in lacking)
    if given != loaded:
        n_placed = (given & loaded).total()
        raise ValueError(f"{n_placed} of its {given.total()} tensors for {part} have a place in the model")
    if lacking:
        raise ValueError(f"it lacks {len(lacking)} tensors for {part}, such as {lacking[0]}")


def _print_of(weight: Any, dtype: Any) -> tuple[tuple[int, ...], float]:
    """What tells a tensor from others under whatever name: one that was not loaded has peft's random numbers or 0."""
    return tuple(weight.shape), float(weight.detach().to(dtype).double().sum())
