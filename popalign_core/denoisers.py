"""The denoisers of the model families: which module of a pipeline it is, how it is called, where captions come in.

Three families: SDXL's UNet (and SDXL-Turbo's, SSD-1B's), the UNet of Stable Diffusion 1.x and 2.x, and Stable
Diffusion 3's transformer, which predicts the flow.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from popalign_core.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """What the families differ in.

    Attributes:
        name: For messages and cards.
        component: Name of the denoiser in a pipeline.
        has_pooled: Whether it reads a pooled text embedding.
        has_sizes: Whether it reads SDXL's micro-conditioning.
        lora_targets: Modules that a LoRA adapter goes to unless others are named.
        caption_parts: Parts of parameter names where the caption comes in.
    """

    name: str
    component: str
    has_pooled: bool
    has_sizes: bool
    lora_targets: tuple[str, ...]
    caption_parts: tuple[str, ...]


_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
SDXL = Family("SDXL", "unet", True, True, _ATTENTION, (".attn2.", "add_embedding."))
SD1 = Family("Stable Diffusion 1/2", "unet", False, False, _ATTENTION, (".attn2.",))
SD3 = Family(
    "Stable Diffusion 3",
    "transformer",
    True,
    False,
    (*_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ("context_embedder.", "text_embedder.", ".add_q_proj.", ".add_k_proj.", ".add_v_proj.", ".to_add_out."),
)


def find_denoiser(pipeline: Any) -> Any:
    """The module of a pipeline that predicts noise, velocity or flow.

    Raises:
        ConfigError: When the pipeline has neither `unet` nor `transformer`.
    """
    for component in ("unet", "transformer"):
        module = getattr(pipeline, component, None)
        if module is not None:
            return module
    raise ConfigError(f"{type(pipeline).__name__} has neither unet nor transformer; give a text-to-image pipeline")


def family_of(model: Any) -> Family:
    """A denoiser's family, by its class and configuration.

    Raises:
        ConfigError: For a class or a conditioning that none of the families has.
    """
    kind = type(model).__name__
    if kind == "SD3Transformer2DModel":
        return SD3
    if kind == "UNet2DConditionModel":
        added = model.config.addition_embed_type
        if model.config.time_cond_proj_dim is not None:
            raise ConfigError("this UNet reads its guidance scale (time_cond_proj_dim, LCM): give one that does not")
        if added == "text_time":
            return SDXL
        if added is None:
            return SD1
        kind = f"{kind} with addition_embed_type {added!r}"
    raise ConfigError(f"{kind} is of no family known here; give an SDXL, a Stable Diffusion 1/2 or a 3 pipeline")


def pipeline_family(pipeline: Any) -> Family:
    """A pipeline's family, by its class alone: it may have been loaded without its denoiser.

    Raises:
        ConfigError: For another pipeline than those of the families.
    """
    kind = type(pipeline).__name__
    for start, family in (("StableDiffusionXL", SDXL), ("StableDiffusion3", SD3), ("StableDiffusion", SD1)):
        if kind.startswith(start):
            return family
    raise ConfigError(f"{kind} is of no family known here; give an SDXL, a Stable Diffusion 1/2 or a 3 pipeline")


@dataclass(frozen=True)
class Conditions:
    """What a denoiser reads besides noisy latents and timesteps.

    Attributes:
        prompt_embeds: [S, L, D].
        pooled_prompt_embeds: [S, D2]; D2 is 0 for a family without.
        time_ids: [S, 6], SDXL's original size, crop corner and target size in px; other families ignore it.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    time_ids: Tensor


def predict(model: Any, family: Family, noisy_latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """One forward.

    Args:
        model: The denoiser, or a wrapper with its signature.
        family: Of the denoiser.
        noisy_latents: [S, C, h, w].
        timesteps: [S] or a scalar, in the model's own numbers.
        conditions: Of length S.

    Returns:
        [S, C, h, w] noise, velocity or flow, as the model was trained to.
    """
    inputs: dict[str, Any]
    if family is SD3:
        inputs = {"pooled_projections": conditions.pooled_prompt_embeds, "timestep": timesteps}
    else:
        inputs = {"timestep": timesteps}
    if family.has_sizes:
        added = {"text_embeds": conditions.pooled_prompt_embeds, "time_ids": conditions.time_ids}
        inputs["added_cond_kwargs"] = added
    model_pred: Tensor = model(
        noisy_latents, encoder_hidden_states=conditions.prompt_embeds, return_dict=False, **inputs
    )[0]
    return model_pred
