"""Latents to pixels and back, in batches of the VAE's own.

Latents are in the denoiser's (scaled) space. Decoding leaves that space: it divides by the VAE's `scaling_factor` (and
applies `latents_mean`/`latents_std` and `shift_factor` where the VAE has them); encoding is the way back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from popalign_core.errors import InputError

# One decode of the VAE holds at most this many pixels: 4 images of 1024 x 1024, 1024 of 64 x 64.
MAX_DECODED_PIXELS = 2**22


@torch.inference_mode()
def decode_latents(vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Latents in the UNet's scaled space [B, C, h, w] to pixels [B, H, W, 3] uint8.

    Raises:
        InputError: When a pixel is not finite: as uint8 it would be black, and a broken model one without faces.
    """
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    n_pixels = latents.shape[-1] * latents.shape[-2] * scale**2
    with _tiled(vae, n_pixels > MAX_DECODED_PIXELS):
        parts = latents.split(max(1, MAX_DECODED_PIXELS // n_pixels))
        images = [vae.decode(_unscaled(vae, part), return_dict=False)[0].float() for part in parts]
    decoded = torch.cat(images)
    broken = int((~decoded.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        cause, fix = "damaged", "restore them"
        if vae.dtype == torch.float16:
            cause, fix = f"damaged, or too large for {vae.dtype}", f"{fix}, or set model.dtype to bfloat16 or float32"
        raise InputError(
            f"{broken} of {len(decoded)} images are not finite (NaN or infinite); the model's weights are {cause}: "
            f"{fix}"
        )
    pixels = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


@contextmanager
def _tiled(vae: Any, is_large: bool) -> Iterator[None]:
    """Let the VAE take one image in overlapping tiles; only where the image alone is too large."""
    if not is_large or not hasattr(vae, "enable_tiling") or vae.use_tiling:
        yield
        return
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


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
    that equal images have equal latents.

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
