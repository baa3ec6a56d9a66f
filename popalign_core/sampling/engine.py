"""The sampling engine: one forward a step for the guided and the unguided half of a batch.

Latents are in the denoiser's (scaled) space: what the sampler ends with is what training hands to `add_noise`.

Reproducibility: every image owns a CPU generator made from its own seed, so neither its neighbours in the batch nor the
device choose its noise. On one machine, calls with the same batch shape and thread count give the same bits. Another
batch size, thread count or processor may pick other matrix kernels: latents then agree to float32 rounding (about
1e-4), pixels to one grey level.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from popalign_core.config import SamplingConfig
from popalign_core.errors import InputError
from popalign_core.models.denoisers import family_of, find_denoiser, latent_channels
from popalign_core.models.embeddings import PromptEmbeddings
from popalign_core.models.parts_fit import check_widths
from popalign_core.models.vae import decode_latents
from popalign_core.sampling.edits import Edits
from popalign_core.sampling.prediction import Captions, Predictor
from popalign_core.sampling.schedulers import make_scheduler, start_sampling, step_options


@torch.inference_mode()
def sample_images(
    pipeline: Any,
    embeddings: PromptEmbeddings,
    unconditional: PromptEmbeddings,
    prompt_index: Sequence[int],
    seeds: Sequence[int],
    config: SamplingConfig,
    *,
    edits: Edits | None = None,
    start_latents: Tensor | None = None,
) -> tuple[NDArray[np.uint8], Tensor]:
    """Sample one image for each (prompt, seed).

    Args:
        pipeline: A loaded pipeline; its own scheduler is left untouched.
        embeddings: P prompts.
        unconditional: One prompt, the empty one.
        prompt_index: [B] rows of `embeddings`.
        seeds: [B] one seed an image, in [0, 2**63).
        config: Steps, guidance, scheduler, size in px.
        edits: Of the B images, with `config.fair_diffusion`.
        start_latents: [B, C, h, w] where `config.sdedit` starts from, in the UNet's scaled space.

    Returns:
        pixels [B, H, W, 3] uint8 and the final latents [B, C, h, w] float32 on the CPU, in the UNet's scaled space:
        what `add_noise` takes.

    Raises:
        InputError: When prompts and seeds differ in number, a prompt index is out of range, `unconditional` is
            not one prompt, the size does not fit the model, or what `config` asks for is not there.
        DamagedWeightsError: When the embeddings are of other text encoders than the denoiser's.
        ConfigError: When the model's family has no use for the guidance or the scheduler that `config` asks for.
    """
    _check_batch(pipeline, embeddings, unconditional, prompt_index, seeds, config)
    captions = Captions(embeddings, prompt_index, unconditional, edits, start_latents)
    _check_captions(captions, len(seeds), config)
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    noise = _draw_noise(pipeline, generators, config)
    scheduler = make_scheduler(pipeline.scheduler, config.scheduler, config.timestep_spacing)
    noise = noise.to(execution_device(pipeline))
    latents = denoise(find_denoiser(pipeline), scheduler, noise, captions, seeds, generators, config)
    return decode_latents(pipeline.vae, latents), latents.cpu()


def execution_device(pipeline: Any) -> torch.device:
    """Where a pipeline computes; with offloading its modules lie elsewhere between their turns."""
    device: torch.device = getattr(pipeline, "_execution_device", None) or find_denoiser(pipeline).device
    return device


def initial_noise(pipeline: Any, seeds: Sequence[int], config: SamplingConfig) -> Tensor:
    """Unit noise, one CPU generator an image: [B, C, h, w] float32."""
    return _draw_noise(pipeline, [torch.Generator().manual_seed(int(seed)) for seed in seeds], config)


def _draw_noise(pipeline: Any, generators: Sequence[torch.Generator], config: SamplingConfig) -> Tensor:
    factor = pipeline.vae_scale_factor
    shape = (latent_channels(find_denoiser(pipeline)), config.height // factor, config.width // factor)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def time_ids(config: SamplingConfig) -> Tensor:
    """SDXL's micro-conditioning for an uncropped image: original size, crop corner, target size; [1, 6] float32."""
    size = (config.height, config.width)
    return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)


def denoise(
    denoiser: Any,
    scheduler: Any,
    noise: Tensor,
    captions: Captions,
    seeds: Sequence[int],
    generators: list[torch.Generator],
    config: SamplingConfig,
) -> Tensor:
    """From noise to latents.

    Args:
        denoiser: UNet or transformer.
        scheduler: Fresh, of `make_scheduler`.
        noise: [B, C, h, w] float32 unit noise on the device to compute on.
        captions: Of B images.
        seeds: [B].
        generators: One an image, for samplers that draw noise as they go.
        config: Steps and guidance.

    Returns:
        [B, C, h, w] float32 latents in the UNet's scaled space.
    """
    timesteps = start_sampling(scheduler, config, family_of(denoiser), noise)
    latents = _first_latents(scheduler, noise, captions.start_latents, timesteps)
    predictor = Predictor(denoiser, scheduler, captions, seeds, time_ids(config), config, noise.device)
    options = step_options(scheduler, config, generators)
    for step, timestep in enumerate(timesteps):
        model_pred = predictor(latents, timestep, step)
        latents = scheduler.step(model_pred, timestep, latents, **options, return_dict=False)[0]
    return latents


def _first_latents(scheduler: Any, noise: Tensor, start: Tensor | None, timesteps: Tensor) -> Tensor:
    """Pure noise, or an image with as much noise as the first timestep has (SDEdit, Meng et al. 2022)."""
    if start is None:
        return noise * getattr(scheduler, "init_noise_sigma", 1.0)
    start = start.to(noise)
    if hasattr(scheduler, "scale_noise"):
        noisy: Tensor = scheduler.scale_noise(start, timesteps[:1], noise)
    else:
        noisy = scheduler.add_noise(start, noise, timesteps[:1])
    return noisy


def _check_batch(
    pipeline: Any,
    embeddings: PromptEmbeddings,
    unconditional: PromptEmbeddings,
    prompt_index: Sequence[int],
    seeds: Sequence[int],
    config: SamplingConfig,
) -> None:
    n_prompts = len(embeddings)
    if len(prompt_index) != len(seeds) or len(seeds) == 0:
        raise InputError(f"{len(prompt_index)} prompts and {len(seeds)} seeds; give one seed per image, at least one")
    bad = [int(index) for index in prompt_index if not 0 <= index < n_prompts]
    if bad:
        raise InputError(f"prompt_index {bad[:5]} is outside the {n_prompts} prompt embeddings")
    if len(unconditional) != 1:
        raise InputError(f"unconditional holds {len(unconditional)} prompts; give one, the empty text")
    check_widths(find_denoiser(pipeline), embeddings)
    factor, family = pipeline.vae_scale_factor, family_of(find_denoiser(pipeline))
    if config.width % (factor * family.patch) or config.height % (factor * family.patch):
        raise InputError(
            f"{config.width} x {config.height} px does not fit {family.name}: the VAE's factor {factor} times the "
            f"denoiser's patches of {family.patch}; give multiples of {factor * family.patch} px"
        )


def _check_captions(captions: Captions, n_images: int, config: SamplingConfig) -> None:
    """What the configuration asks for and what is given must be the same, image by image."""
    checks: tuple[tuple[Tensor | None, object, str], ...] = (
        (captions.edits.direction if captions.edits else None, config.fair_diffusion, "fair_diffusion"),
        (captions.start_latents, config.sdedit, "sdedit"),
    )
    for given, setting, what in checks:
        if (given is None) != (setting is None):
            state = "is set, but nothing is given for it" if given is None else "is not set, but something is given"
            raise InputError(f"sampling.{what} {state}: edits go with fair_diffusion, start_latents with sdedit")
        if given is not None and len(given) != n_images:
            raise InputError(f"sampling.{what}: {len(given)} given for {n_images} images; give one per image")
