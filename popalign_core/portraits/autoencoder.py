"""The autoencoder of the embedded model: `AutoencoderTiny`, 64 px to 12 x 8 x 8 latents near unit variance."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor, nn

from popalign_core.portraits.part_training import LoopConfig, fit
from popalign_core.portraits.rendering import to_unit_range

LATENT_CHANNELS = 12
LATENT_NOISE = 0.06


def make_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder. No residual blocks at full resolution: that is where the time would go."""
    width = (48,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        latent_channels=LATENT_CHANNELS,
        num_encoder_blocks=(0, 1, 2, 2),
        num_decoder_blocks=(2, 2, 1, 0),
        scaling_factor=1.0,
    )


def gradient_size(error: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, along rows plus along columns, of `[B, C, H, W]`; a scalar."""
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return across + down


def train_autoencoder(
    autoencoder: AutoencoderTiny,
    pixels_u8: NDArray[np.uint8],
    config: LoopConfig,
    folder: Path,
    *,
    batch_size: int,
    on_step: Callable[[str, int, dict[str, float]], None] | None = None,
) -> None:
    """L1 and gradient-difference reconstruction with a little latent noise; latents pulled to zero mean, unit variance.

    Args:
        autoencoder: Trained in place.
        pixels_u8: `[N, 64, 64, 3]`.
        config: The loop's.
        folder: Where checkpoint and log go.
        batch_size: Images a step.
        on_step: Progress.
    """

    def loss_fn(model: nn.Module, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(pixels_u8), (batch_size,), generator=generator)
        images = to_unit_range(pixels_u8[index.numpy()])
        latents = model.get_submodule("encoder")(images)
        noise = torch.randn(latents.shape, generator=generator)
        decoded = model.get_submodule("decoder")(latents + LATENT_NOISE * noise)
        error = decoded - images
        gradient = gradient_size(error)
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        unit = mean.square().mean() + (deviation - 1).square().mean()
        loss = error.abs().mean() + 0.5 * gradient + 0.02 * unit
        psnr = -10 * torch.log10(error.detach().square().mean() / 4)
        return loss, {"psnr": float(psnr), "unit": float(unit.detach())}

    fit("autoencoder", autoencoder.to(memory_format=torch.channels_last), loss_fn, config, folder, on_step)


@torch.no_grad()
def encode_portraits(autoencoder: AutoencoderTiny, pixels_u8: NDArray[np.uint8], batch_size: int = 64) -> Tensor:
    """`[N, 64, 64, 3]` uint8 to `[N, 12, 8, 8]` float32 latents."""
    chunks = [pixels_u8[i : i + batch_size] for i in range(0, len(pixels_u8), batch_size)]
    return torch.cat([autoencoder.encoder(to_unit_range(chunk)).contiguous() for chunk in chunks])


@torch.no_grad()
def decode_portraits(autoencoder: AutoencoderTiny, latents: Tensor, batch_size: int = 64) -> NDArray[np.uint8]:
    """`[N, 12, 8, 8]` latents to `[N, 64, 64, 3]` uint8 images."""
    chunks = []
    for batch in latents.split(batch_size):
        images = autoencoder.decoder(batch.contiguous(memory_format=torch.channels_last))
        chunks.append(((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(chunks)
