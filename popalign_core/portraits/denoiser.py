"""The denoiser of the embedded model: a 4 M parameter SDXL UNet on 8 x 8 latents, with its text encoders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from popalign_core.portraits.autoencoder import LATENT_CHANNELS
from popalign_core.portraits.image_pool import ImagePool, write_caption
from popalign_core.portraits.part_training import LoopConfig, fit
from popalign_core.portraits.rendering import SIZE
from popalign_core.portraits.text import TEXT_WIDTH, encode_tokens, make_text_encoders, tokenise

TIME_ID_WIDTH = 32
TIME_IDS = (SIZE, SIZE, 0, 0, SIZE, SIZE)
"""SDXL's micro-conditioning: original size, crop corner, target size."""

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
}


def make_unet() -> UNet2DConditionModel:
    """The untrained UNet: cross-attention at 4 x 4, `text_time` conditioning as in SDXL."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=1,
        cross_attention_dim=2 * TEXT_WIDTH,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=TEXT_WIDTH + len(TIME_IDS) * TIME_ID_WIDTH,
    )


def make_denoiser(tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    """UNet and both text encoders, trained together."""
    first, second = make_text_encoders(tokenizer)
    return nn.ModuleDict({"unet": make_unet(), "text_encoder": first, "text_encoder_2": second})


def make_sampling_scheduler() -> DPMSolverMultistepScheduler:
    """The scheduler that ships with the pipeline."""
    return DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="trailing", use_karras_sigmas=False)


def train_denoiser(
    denoiser: nn.ModuleDict,
    tokenizer: CLIPTokenizer,
    pool: ImagePool,
    latents: Tensor,
    config: LoopConfig,
    folder: Path,
    *,
    batch_size: int,
    on_step: Callable[[str, int, dict[str, float]], None] | None = None,
) -> None:
    """v-prediction (Salimans & Ho 2022) on cached latents, captions drawn anew every time.

    Args:
        denoiser: From `make_denoiser`; trained in place.
        tokenizer: Of the captions.
        pool: Gives what is in each image.
        latents: `[N, 12, 8, 8]` float32, one a pool row, near unit variance.
        config: The loop's.
        folder: Where checkpoint and log go.
        batch_size: Latents a step.
        on_step: Progress.
    """
    schedule = DDPMScheduler(**SCHEDULE)
    rows = pool.rows.to_dict("records")
    known: dict[str, Tensor] = {}
    time_ids = torch.tensor([TIME_IDS], dtype=torch.float32).expand(batch_size, -1)

    def caption_ids(index: Tensor, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        captions = [write_caption(rows[i], rng) for i in index.tolist()]
        for caption in set(captions) - known.keys():
            known[caption] = tokenise(tokenizer, [caption])[0]
        return torch.stack([known[caption] for caption in captions])

    def loss_fn(model: nn.Module, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(1000, (batch_size,), generator=generator)
        prompt_embeds, pooled = encode_tokens(model.text_encoder, model.text_encoder_2, caption_ids(index, generator))
        added = {"text_embeds": pooled, "time_ids": time_ids}
        noisy = schedule.add_noise(clean, noise, timesteps)
        model_pred = model.get_submodule("unet")(noisy, timesteps, prompt_embeds, added_cond_kwargs=added).sample
        loss = (model_pred - schedule.get_velocity(clean, noise, timesteps)).square().mean()
        return loss, {}

    fit("denoiser", denoiser, loss_fn, config, folder, on_step)
