"""Sharpening the decoder: the encoder, and with it every latent, stays; an adversary asks for crisp images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from popalign_core.portraits.autoencoder import LATENT_NOISE, gradient_size
from popalign_core.portraits.part_training import LoopConfig, fit
from popalign_core.portraits.rendering import to_unit_range

BATCH_SIZE = 12
ADVERSARIAL_WEIGHT = 0.02
ADVERSARIAL_START = 200
"""Steps in which only the discriminator learns, so that its first opinions do no harm."""


def make_discriminator() -> nn.Sequential:
    """A patch discriminator (Isola et al. 2017): 64 px images to an 8 x 8 map of logits."""

    def block(n_in: int, n_out: int) -> list[nn.Module]:
        convolution = nn.utils.parametrizations.spectral_norm(nn.Conv2d(n_in, n_out, 4, stride=2, padding=1))
        return [convolution, nn.LeakyReLU(0.2)]

    return nn.Sequential(*block(3, 32), *block(32, 64), *block(64, 128), nn.Conv2d(128, 1, 3, padding=1))


def train_decoder(
    autoencoder: AutoencoderTiny,
    pixels_u8: NDArray[np.uint8],
    latents: Tensor,
    config: LoopConfig,
    folder: Path,
    *,
    on_step: Callable[[str, int, dict[str, float]], None] | None = None,
) -> None:
    """Train only the decoder: reconstruction plus a hinge adversarial loss on patches.

    Both players share one optimiser: the adversarial term sees the discriminator's weights detached, the
    discriminator's term sees the image detached.

    Args:
        autoencoder: Its decoder is trained in place.
        pixels_u8: `[N, 64, 64, 3]`.
        latents: `[N, 12, 8, 8]`, the encoder's for the same images.
        config: The loop's.
        folder: Where checkpoint and log go.
        on_step: Progress.
    """
    players = nn.ModuleDict({"decoder": autoencoder.decoder, "discriminator": make_discriminator()})

    def loss_fn(model: nn.Module, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        decoder, discriminator = model.get_submodule("decoder"), model.get_submodule("discriminator")
        index = torch.randint(len(pixels_u8), (BATCH_SIZE,), generator=generator)
        real = to_unit_range(pixels_u8[index.numpy()])
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        fake = decoder(clean + LATENT_NOISE * noise)
        error = fake - real
        gradient = gradient_size(error)
        # Detached weights: the decoder is pushed, the discriminator is not pulled along.
        frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
        opinion = functional_call(discriminator, frozen, (fake,))
        judged_real, judged_fake = discriminator(real), discriminator(fake.detach())
        hinge = functional.relu(1 - judged_real).mean() + functional.relu(1 + judged_fake).mean()
        weight = ADVERSARIAL_WEIGHT if step >= ADVERSARIAL_START else 0.0
        loss = error.abs().mean() + 0.5 * gradient - weight * opinion.mean() + hinge
        psnr = -10 * torch.log10(error.detach().square().mean() / 4)
        return loss, {"psnr": float(psnr), "hinge": float(hinge.detach())}

    # torch's stub of Module.to leaves out the documented memory_format.
    players.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fit("decoder", players, loss_fn, config, folder, on_step)
