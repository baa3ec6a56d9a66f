"""The denoisers of the model families: which module of a pipeline it is, how it is called, where captions come in.

Four families: SDXL's UNet (and SDXL-Turbo's, SSD-1B's), the UNet of Stable Diffusion 1.x and 2.x, and two transformers
that predict the flow, Stable Diffusion 3's and FLUX.1's (dev and schnell). What they differ in is data, here; elsewhere
latents are [B, C, h, w] whatever the family, and FLUX's patches are packed and unpacked in `predict` alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from popalign_core.errors import ConfigError

FLOW_PATCH = 2
"""Side of the patches, in latents, that the flow transformers read."""


@dataclass(frozen=True)
class Family:
    """What the families differ in.

    Attributes:
        name: For messages and cards.
        component: Name of the denoiser in a pipeline.
        lora_targets: Modules that a LoRA adapter goes to unless others are named.
        caption_parts: Parts of parameter names where the caption comes in.
        encode_options: What the pipeline's `encode_prompt` is called with, besides texts and device.
        pooled_output: Which of its outputs is the pooled text embedding; None where the denoiser reads none.
        text_lengths: Tokens a text encoder reads, by the end of its name, where it is not its tokenizer's own number.
        has_sizes: Whether it reads SDXL's micro-conditioning.
        patch: Side of the patches it reads: what height and width of latents are multiples of.
        is_packed: Whether it is given the patches, as tokens, in place of the latents; times then run from 0 to 1.
        even_levels: Whether its sampler goes through the noise levels 1, 1 - 1/n, ..., 1/n (then shifted), not those of
            the scheduler.
        embeds_guidance: Whether it is distilled from guidance: `guidance_scale` is a number it reads, like the time.
    """

    name: str
    component: str
    lora_targets: tuple[str, ...]
    caption_parts: tuple[str, ...]
    encode_options: Mapping[str, Any]
    pooled_output: int | None
    text_lengths: Mapping[str, int] = field(default_factory=dict)
    has_sizes: bool = False
    patch: int = 1
    is_packed: bool = False
    even_levels: bool = False
    embeds_guidance: bool = False

    @property
    def has_pooled(self) -> bool:
        """Whether it reads a pooled text embedding."""
        return self.pooled_output is not None


_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_JOINT_ATTENTION = (*_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_JOINT_CAPTION = ("context_embedder.", "text_embedder.", ".add_q_proj.", ".add_k_proj.", ".add_v_proj.", ".to_add_out.")
_ALONE = {"do_classifier_free_guidance": False}
SDXL = Family("SDXL", "unet", _ATTENTION, (".attn2.", "add_embedding."), _ALONE, 2, has_sizes=True)
SD1 = Family("Stable Diffusion 1/2", "unet", _ATTENTION, (".attn2.",), _ALONE | {"num_images_per_prompt": 1}, None)
SD3 = Family(
    "Stable Diffusion 3",
    "transformer",
    _JOINT_ATTENTION,
    _JOINT_CAPTION,
    _ALONE | {"prompt_2": None, "prompt_3": None},
    2,
    # what its `encode_prompt` gives to T5 unless it is told otherwise; the tokenizer would take 512
    text_lengths={"_3": 256},
    patch=FLOW_PATCH,
)
FLUX = Family(
    "FLUX.1",
    "transformer",
    _JOINT_ATTENTION,
    _JOINT_CAPTION,
    {},
    1,
    text_lengths={"_2": 512},
    patch=FLOW_PATCH,
    is_packed=True,
    even_levels=True,
)
FLUX_DEV = replace(FLUX, name="FLUX.1-dev", embeds_guidance=True)

_KNOWN = "give an SDXL, a Stable Diffusion 1/2 or 3, or a FLUX.1 pipeline"


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
    if kind == "FluxTransformer2DModel":
        return FLUX_DEV if model.config.guidance_embeds else FLUX
    if kind == "UNet2DConditionModel":
        added = model.config.addition_embed_type
        if model.config.time_cond_proj_dim is not None:
            raise ConfigError("this UNet reads its guidance scale (time_cond_proj_dim, LCM): give one that does not")
        if added == "text_time":
            return SDXL
        if added is None:
            return SD1
        kind = f"{kind} with addition_embed_type {added!r}"
    raise ConfigError(f"{kind} is of no family known here; {_KNOWN}")


def latent_channels(model: Any) -> int:
    """How many channels the latents of a denoiser have; FLUX's own number counts those of a whole patch."""
    family, channels = family_of(model), int(model.config.in_channels)
    return channels // family.patch**2 if family.is_packed else channels


def text_widths(model: Any) -> tuple[int, int]:
    """Widths of the token states and of the pooled state that a denoiser reads; 0 where it reads none."""
    family, config = family_of(model), model.config
    if family.component == "transformer":
        return int(config.joint_attention_dim), int(config.pooled_projection_dim)
    widths = config.encoder_hid_dim or config.cross_attention_dim  # one for all blocks, or one for each
    width = max(widths) if isinstance(widths, list | tuple) else widths
    n_ids = 6 * config.addition_time_embed_dim if family.has_sizes else 0
    return int(width), int(config.projection_class_embeddings_input_dim) - n_ids if family.has_sizes else 0


def pipeline_family(pipeline: Any) -> Family:
    """A pipeline's family, by its class alone: it may have been loaded without its denoiser.

    Whether a FLUX.1 reads its guidance scale its transformer alone can say: see `family_of`.

    Raises:
        ConfigError: For another pipeline than those of the families.
    """
    kind = type(pipeline).__name__
    for start, family in (
        *(("StableDiffusionXL", SDXL), ("StableDiffusion3", SD3), ("StableDiffusion", SD1)),
        ("FluxPipeline", FLUX),  # the other pipelines of FLUX.1 read images, too
    ):
        if kind.startswith(start):
            return family
    raise ConfigError(f"{kind} is of no family known here; {_KNOWN}")


@dataclass(frozen=True)
class Conditions:
    """What a denoiser reads besides noisy latents and timesteps.

    Attributes:
        prompt_embeds: [S, L, D].
        pooled_prompt_embeds: [S, D2]; D2 is 0 for a family without.
        time_ids: [S, 6], SDXL's original size, crop corner and target size in px; other families ignore it.
        guidance: [S] guidance scales, for families that embed theirs; others ignore it.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    time_ids: Tensor
    guidance: Tensor


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
    inputs: dict[str, Any] = {"timestep": timesteps}
    if family.has_sizes:
        added = {"text_embeds": conditions.pooled_prompt_embeds, "time_ids": conditions.time_ids}
        inputs["added_cond_kwargs"] = added
    elif family.has_pooled:
        inputs["pooled_projections"] = conditions.pooled_prompt_embeds
    height, width = noisy_latents.shape[-2:]
    if family.is_packed:
        noisy_latents = pixel_unshuffle(noisy_latents, family.patch).flatten(2).mT
        inputs |= _token_inputs(family, timesteps, conditions, height // family.patch, width // family.patch)
    model_pred: Tensor = model(
        noisy_latents, encoder_hidden_states=conditions.prompt_embeds, return_dict=False, **inputs
    )[0]
    if family.is_packed:
        model_pred = pixel_shuffle(model_pred.mT.unflatten(2, (height // family.patch, -1)), family.patch)
    return model_pred


def _token_inputs(
    family: Family, timesteps: Tensor, conditions: Conditions, n_rows: int, n_columns: int
) -> dict[str, Any]:
    """What FLUX's transformer reads besides: the times as shares, where each token stands, the guidance scale."""
    rows, columns = (torch.arange(n, device=timesteps.device) for n in (n_rows, n_columns))
    places = torch.cartesian_prod(rows, columns)
    return {
        "timestep": timesteps / 1000,  # the transformer's own factor, whatever the scheduler's number of steps
        "img_ids": pad(places, (1, 0)),
        "txt_ids": places.new_zeros((conditions.prompt_embeds.shape[1], 3)),
        "guidance": conditions.guidance if family.embeds_guidance else None,
    }
