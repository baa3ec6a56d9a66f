"""The sampling engine: one forward a step for the guided and the unguided half of a batch.

Latents are in the denoiser's (scaled) space: what the sampler ends with is what training hands to `add_noise`.
Decoding leaves that space: it divides by the VAE's `scaling_factor` (and applies `latents_mean`/`latents_std`
where the VAE has them).

Reproducibility: every image owns a CPU generator made from its own seed, so neither its neighbours in the batch nor the
device choose its noise. Calls with the same batch shape (and thread count) give the same bits. Another batch size may
pick other matrix kernels: latents then agree to float32 rounding (about 1e-4), pixels to one grey level.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from numpy.typing import NDArray
from torch import Tensor

from popalign_core.config import SamplingConfig
from popalign_core.denoisers import Conditions, Family, family_of, find_denoiser, predict
from popalign_core.errors import ConfigError, InputError

# One decode of the VAE holds at most this many pixels: 4 images of 1024 x 1024, 1024 of 64 x 64.
MAX_DECODED_PIXELS = 2**22


@dataclass(frozen=True)
class PromptEmbeddings:
    """What the UNet reads of P prompts.

    Attributes:
        prompt_embeds: [P, L, D] float32, both text encoders' token states.
        pooled_prompt_embeds: [P, D2] float32, the pooled state; D2 is 0 for a family without.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.prompt_embeds.shape), tuple(self.pooled_prompt_embeds.shape)
        if self.prompt_embeds.ndim != 3 or self.pooled_prompt_embeds.ndim != 2 or shapes[0][0] != shapes[1][0]:
            raise InputError(
                f"prompt embeddings must be [P, L, D] and [P, D2] with one P, got {shapes[0]} and {shapes[1]}"
            )


@torch.inference_mode()
def embed_prompts(pipeline: Any, texts: Sequence[str], batch_size: int) -> PromptEmbeddings:
    """Encode prompts with all of the pipeline's text encoders.

    The empty text "" is the unconditional prompt. Pipelines with `force_zeros_for_empty_prompt` (SDXL's own) were
    trained with zeros in its place, so there it becomes zeros, as in the stock pipeline.

    Args:
        pipeline: A loaded pipeline of a known family.
        texts: P prompts.
        batch_size: Prompts a forward.

    Returns:
        The embeddings on the CPU, float32, in the order of `texts`.

    Raises:
        InputError: When `texts` is empty.
    """
    if not texts:
        raise InputError("no prompt to embed: the list of texts is empty; give at least one")
    parts = [_encode(pipeline, list(texts[start : start + batch_size])) for start in range(0, len(texts), batch_size)]
    prompt_embeds, pooled = (torch.cat(column) for column in zip(*parts, strict=True))
    if getattr(pipeline.config, "force_zeros_for_empty_prompt", False):
        empty = torch.tensor([text == "" for text in texts])
        prompt_embeds[empty] = 0.0
        pooled[empty] = 0.0
    return PromptEmbeddings(prompt_embeds, pooled)


def _encode(pipeline: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    denoiser = find_denoiser(pipeline)
    options: dict[str, Any] = {"device": pipeline.text_encoder.device, "do_classifier_free_guidance": False}
    family = family_of(denoiser)
    if not family.has_pooled:
        embeds, _ = pipeline.encode_prompt(texts, num_images_per_prompt=1, **options)
        return embeds.float().cpu(), torch.zeros((len(texts), 0))
    more = {} if family.has_sizes else {"prompt_2": None, "prompt_3": None}
    embeds, _, pooled, _ = pipeline.encode_prompt(texts, **more, **options)
    return embeds.float().cpu(), pooled.float().cpu()


@torch.inference_mode()
def sample_images(
    pipeline: Any,
    embeddings: PromptEmbeddings,
    unconditional: PromptEmbeddings,
    prompt_index: Sequence[int],
    seeds: Sequence[int],
    config: SamplingConfig,
) -> tuple[NDArray[np.uint8], Tensor]:
    """Draw one image for each (prompt, seed).

    Args:
        pipeline: A loaded pipeline; its own scheduler is left untouched.
        embeddings: P prompts.
        unconditional: One prompt, the empty one.
        prompt_index: [B] rows of `embeddings`.
        seeds: [B] one seed an image, in [0, 2**63).
        config: Steps, guidance scale, scheduler, size in px.

    Returns:
        pixels [B, H, W, 3] uint8 and the final latents [B, C, h, w] float32 on the CPU, in the UNet's scaled space:
        what `add_noise` takes.

    Raises:
        InputError: When prompts and seeds differ in number, a prompt index is out of range, `unconditional` is
            not one prompt, or the size does not fit the VAE.
    """
    _check_batch(pipeline, embeddings, unconditional, prompt_index, seeds, config)
    denoiser = find_denoiser(pipeline)
    rows = torch.as_tensor(prompt_index, dtype=torch.int64)
    latents = initial_noise(pipeline, seeds, config).to(denoiser.device)
    conditions = _conditions(embeddings, unconditional, rows, config, denoiser)
    scheduler = make_scheduler(pipeline.scheduler, config.scheduler)
    latents = denoise(denoiser, family_of(denoiser), scheduler, latents, conditions, config)
    return decode_latents(pipeline.vae, latents), latents.cpu()


def initial_noise(pipeline: Any, seeds: Sequence[int], config: SamplingConfig) -> Tensor:
    """Unit noise, one CPU generator an image: [B, C, h, w] float32."""
    factor = pipeline.vae_scale_factor
    shape = (find_denoiser(pipeline).config.in_channels, config.height // factor, config.width // factor)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


def time_ids(config: SamplingConfig) -> Tensor:
    """SDXL's micro-conditioning for an uncropped picture: original size, crop corner, target size; [1, 6] float32."""
    size = (config.height, config.width)
    return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)


def make_scheduler(scheduler: Any, name: str) -> Any:
    """A fresh deterministic sampler on the noise schedule and prediction type of a model's own scheduler.

    Raises:
        ConfigError: For a flow model with another sampler than Euler's.
    """
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__:
        if name != "euler":
            raise ConfigError(f"sampling.scheduler is {name!r}, but this is a flow model: choose euler")
        return FlowMatchEulerDiscreteScheduler.from_config(config)
    if name == "dpmsolver++":
        return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
    if name == "ddim":
        # Euler and DPM-Solver configs carry no clip_sample, and DDIM's default would clip latents to [-1, 1].
        return DDIMScheduler.from_config(config, clip_sample=False)
    return EulerDiscreteScheduler.from_config(config)


def denoise(
    denoiser: Any, family: Family, scheduler: Any, latents: Tensor, conditions: Conditions, config: SamplingConfig
) -> Tensor:
    """Classifier-free guided sampling (Ho & Salimans 2022, arXiv:2207.12598, Eq. 6).

    Args:
        denoiser: UNet or transformer.
        family: Of the denoiser.
        scheduler: Deterministic; stepped `config.n_steps` times.
        latents: [B, C, h, w] float32 unit noise on the denoiser's device.
        conditions: Of 2B, the unconditional half first; of B when the guidance scale is 1.
        config: Steps and guidance scale.

    Returns:
        [B, C, h, w] float32 latents in the UNet's scaled space.
    """
    with warnings.catch_warnings():
        # diffusers hands CPU tensors to numpy 2 in a way that torch's CPU wheel calls deprecated
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler.set_timesteps(config.n_steps, device=latents.device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    guided = config.guidance_scale > 1
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        noisy = torch.cat([latents, latents]) if guided else latents
        if hasattr(scheduler, "scale_model_input"):
            noisy = scheduler.scale_model_input(noisy, timestep)
        times = timestep.expand(len(noisy))
        model_pred = predict(denoiser, family, noisy.to(denoiser.dtype), times, conditions).float()
        if guided:
            unguided, conditional = model_pred.chunk(2)
            model_pred = unguided + config.guidance_scale * (conditional - unguided)
        latents = scheduler.step(model_pred, timestep, latents, return_dict=False)[0]
    return latents


@torch.inference_mode()
def decode_latents(vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Latents in the UNet's scaled space [B, C, h, w] to pixels [B, H, W, 3] uint8."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    chunk = max(1, MAX_DECODED_PIXELS // (latents.shape[-1] * latents.shape[-2] * scale**2))
    images = [vae.decode(_unscaled(vae, part), return_dict=False)[0].float() for part in latents.split(chunk)]
    pixels = (torch.cat(images) / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def _unscaled(vae: Any, latents: Tensor) -> Tensor:
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    latents = latents / vae.config.scaling_factor
    if mean is not None and std is not None:
        latents = latents * latents.new_tensor(std).view(1, -1, 1, 1) + latents.new_tensor(mean).view(1, -1, 1, 1)
    if (shift := getattr(vae.config, "shift_factor", None)) is not None:
        latents = latents + shift
    return latents.to(device=vae.device, dtype=vae.dtype)


@torch.inference_mode()
def encode_pixels(vae: Any, pixels_u8: NDArray[np.uint8]) -> Tensor:
    """Pixels [B, H, W, 3] uint8 to latents [B, C, h, w] float32 on the CPU, in the UNet's scaled space.

    The way back of `decode_latents`, up to what the VAE loses. Of a VAE that gives a distribution its mode is taken, so
    that equal pictures have equal latents.

    Raises:
        InputError: When the size does not fit the VAE.
    """
    factor, (height, width) = 2 ** (len(vae.config.block_out_channels) - 1), pixels_u8.shape[1:3]
    if width % factor or height % factor:
        raise InputError(f"{width} x {height} px is not a multiple of the VAE's factor {factor}; change sampling")
    chunk = max(1, MAX_DECODED_PIXELS // (width * height))
    images = torch.from_numpy(pixels_u8).permute(0, 3, 1, 2).split(chunk)
    return torch.cat([_encode_images(vae, part) for part in images]).cpu()


def _encode_images(vae: Any, images_u8: Tensor) -> Tensor:
    images = (images_u8.to(vae.device).float() / 127.5 - 1).to(vae.dtype)
    encoded = vae.encode(images)
    # AutoencoderKL gives a distribution, AutoencoderTiny the latents themselves
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return _scaled(vae, latents.float())


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    """What the VAE gives, in the UNet's scaled space: undoes `_unscaled`."""
    if (shift := getattr(vae.config, "shift_factor", None)) is not None:
        latents = latents - shift
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:
        latents = (latents - latents.new_tensor(mean).view(1, -1, 1, 1)) / latents.new_tensor(std).view(1, -1, 1, 1)
    scaled: Tensor = latents * vae.config.scaling_factor
    return scaled


def _conditions(
    embeddings: PromptEmbeddings, unconditional: PromptEmbeddings, rows: Tensor, config: SamplingConfig, denoiser: Any
) -> Conditions:
    """The denoiser's conditions of a batch, the unconditional half first; only the conditional one without guidance."""
    prompt_embeds, pooled = embeddings.prompt_embeds[rows], embeddings.pooled_prompt_embeds[rows]
    if config.guidance_scale > 1:
        prompt_embeds = torch.cat([unconditional.prompt_embeds.expand_as(prompt_embeds), prompt_embeds])
        pooled = torch.cat([unconditional.pooled_prompt_embeds.expand_as(pooled), pooled])
    place = {"device": denoiser.device, "dtype": denoiser.dtype}
    sizes = time_ids(config).expand(len(pooled), 6)
    return Conditions(prompt_embeds.to(**place), pooled.to(**place), sizes.to(**place))


def _check_batch(
    pipeline: Any,
    embeddings: PromptEmbeddings,
    unconditional: PromptEmbeddings,
    prompt_index: Sequence[int],
    seeds: Sequence[int],
    config: SamplingConfig,
) -> None:
    n_prompts, factor = len(embeddings.prompt_embeds), pipeline.vae_scale_factor
    if len(prompt_index) != len(seeds) or len(seeds) == 0:
        raise InputError(f"{len(prompt_index)} prompts and {len(seeds)} seeds; give one seed an image, at least one")
    bad = [int(index) for index in prompt_index if not 0 <= index < n_prompts]
    if bad:
        raise InputError(f"prompt_index {bad[:5]} is outside the {n_prompts} prompt embeddings")
    if len(unconditional.prompt_embeds) != 1:
        raise InputError(f"unconditional holds {len(unconditional.prompt_embeds)} prompts; give one, the empty text")
    if config.width % factor or config.height % factor:
        raise InputError(f"{config.width} x {config.height} px is not a multiple of the VAE's factor {factor}")
