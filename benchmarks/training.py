"""Steps of pairwise Diffusion-DPO with LoRA: the way public scripts do them, against this trainer.

The peer loop is written out here after the public recipe for SDXL: pixels go through the VAE and captions through both
text encoders at every step, and the reference is the same UNet with its adapter off. This trainer reads the sampler's
latents and embeddings that were computed once. Both take the same images, batch, dtype and optimiser, in turns, in one
process; given one batch of latents, noise and timesteps their losses must agree.

    python benchmarks/training.py
    python benchmarks/training.py --model small-sdxl --px 256 --pairs 4 --steps 1

Measured on one core: 1.4 times the peer's pairs a second on the embedded model and on the small SDXL. The UNet takes
98% of the time there, so that what is left to gain is in it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

from popalign_core.config import ModelConfig, RuntimeConfig, SamplingConfig, TrainingConfig
from popalign_core.models.embeddings import embed_prompts
from popalign_core.models.loading import load_pipeline, resolve_device
from popalign_core.portraits.rendering import to_unit_range
from popalign_core.sampling.engine import sample_images, time_ids
from popalign_core.training.batch import Batch, draw_batch
from popalign_core.training.data import PreferenceData
from popalign_core.training.job import TrainingSubject
from popalign_core.training.objective import Running, compute_loss
from popalign_core.training.trainer import TrainingRun

BETA = 20.0
CAPTIONS = ("a photo of a doctor", "a photo of a nurse", "a photo of a florist", "a photo of an engineer")


@dataclass
class Work:
    """What both loops train on."""

    pixels: Tensor  # [2N, 3, H, W] in [-1, 1], preferred half first
    captions: list[str]  # N
    data: PreferenceData
    time_ids: Tensor


class Clock:
    """Seconds spent in named parts; a GPU is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    def measure(self, name: str, call: Callable[[], Any]) -> Any:
        """Run a call and add its time to a part."""
        start = self._now()
        result = call()
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start
        return result

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def small_sdxl(device: torch.device) -> Any:
    """SDXL's architecture at a fifth to a quarter of its widths, random weights: its parts weigh about as there."""
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    embedded = load_pipeline(ModelConfig(), device=torch.device("cpu"))
    tokenizer = embedded.tokenizer

    def text_config(width: int, layers: int) -> Any:
        ids = {name: getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
        return CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, projection_dim=width,
            num_hidden_layers=layers, num_attention_heads=width // 64,
            max_position_embeddings=tokenizer.model_max_length, **{f"{name}_id": value for name, value in ids.items()},
        )  # fmt: skip

    unet = UNet2DConditionModel(
        in_channels=4, out_channels=4, sample_size=32, block_out_channels=(64, 128, 256),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(1, 2, 4), cross_attention_dim=192 + 320,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=64,
        projection_class_embeddings_input_dim=320 + 6 * 64,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
        block_out_channels=(32, 64, 128, 128), layers_per_block=2, scaling_factor=0.13025,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config(192, 12)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(320, 32)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=embedded.scheduler,
        add_watermarker=False,
    ).to(device)


def make_work(pipeline: Any, size: SamplingConfig, n: int) -> Work:
    """Sample n preferred and n dispreferred images of the captions."""
    embeddings, empty = embed_prompts(pipeline, CAPTIONS, 8), embed_prompts(pipeline, [""], 1)
    index = [i % len(CAPTIONS) for i in range(2 * n)]
    pixels, latents = sample_images(pipeline, embeddings, empty, index, list(range(2 * n)), size)
    rows = torch.arange(2 * n)
    data = PreferenceData(
        latents=latents,
        preferred=rows < n,
        prompt_index=torch.tensor(index),
        set_index=torch.tensor(index),
        prompt_embeds=embeddings.prompt_embeds,
        pooled_prompt_embeds=embeddings.pooled_prompt_embeds,
        empty_prompt_embeds=empty.prompt_embeds,
        empty_pooled=empty.pooled_prompt_embeds,
        retained_latents=latents[:0],
        retained_prompt_index=torch.zeros(0, dtype=torch.int64),
        retained_generic=torch.zeros(0, dtype=torch.bool),
    )
    scaled = to_unit_range(pixels, channels_last=False)
    return Work(scaled, [CAPTIONS[i] for i in index[:n]], data, time_ids(size))


def pairwise_loss(
    unet: Any, noisy: Tensor, timesteps: Tensor, target: Tensor, prompt_embeds: Tensor, added: dict[str, Tensor]
) -> Tensor:
    """The peer's loss: both halves through the UNet, again without the adapter, and Eq. 6."""

    def errors() -> Tensor:
        pred = unet(noisy, timesteps, encoder_hidden_states=prompt_embeds, added_cond_kwargs=added).sample
        squared: Tensor = (pred.float() - target.float()).pow(2)
        return squared.mean(dim=[1, 2, 3])

    won, lost = errors().chunk(2)
    unet.disable_adapters()
    with torch.no_grad():
        reference_won, reference_lost = errors().chunk(2)
    unet.enable_adapters()
    inside = -0.5 * BETA * ((won - lost) - (reference_won - reference_lost))
    loss: Tensor = -F.logsigmoid(inside).mean()
    return loss


def peer_step(
    pipeline: Any, scheduler: Any, work: Work, n: int, optimizer: torch.optim.Optimizer, clock: Clock
) -> None:
    """One step as public scripts do it."""
    unet, device = pipeline.unet, pipeline.unet.device
    rows = torch.randint(len(work.captions), (n,))
    pixels = torch.cat([work.pixels[rows], work.pixels[rows + len(work.captions)]]).to(device, pipeline.vae.dtype)
    with torch.no_grad():
        encoded = clock.measure("vae", lambda: pipeline.vae.encode(pixels))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.sample()
        latents = latents * pipeline.vae.config.scaling_factor
        texts = [work.captions[i] for i in rows.tolist()]
        embeddings = clock.measure("text encoders", lambda: embed_prompts(pipeline, texts, n))
    noise = torch.randn_like(latents[:n]).repeat(2, 1, 1, 1)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (n,), device=device).repeat(2)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    place = {"device": device, "dtype": unet.dtype}
    added = {
        "text_embeds": embeddings.pooled_prompt_embeds.repeat(2, 1).to(**place),
        "time_ids": work.time_ids.expand(2 * n, 6).to(**place),
    }
    noisy = scheduler.add_noise(latents, noise, timesteps).to(unet.dtype)
    embeds = embeddings.prompt_embeds.repeat(2, 1, 1).to(**place)
    loss = clock.measure("unet", lambda: pairwise_loss(unet, noisy, timesteps, target, embeds, added))
    clock.measure("unet", loss.backward)
    torch.nn.utils.clip_grad_norm_([w for w in unet.parameters() if w.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def our_run(
    pipeline: Any, work: Work, config: TrainingConfig, clock: Clock, device: torch.device, folder: Path
) -> TrainingRun:
    """This trainer, its forwards and backwards timed."""
    runtime = RuntimeConfig(device=str(device), trackers=())
    subject = TrainingSubject(pipeline.unet, pipeline.scheduler, work.data, work.time_ids)
    run = TrainingRun(subject, config, folder, runtime)
    measure, backward = run.gradient.measure, run.accelerator.backward
    # the UNet itself is the peer's too: this trainer's own calls of it are timed
    object.__setattr__(run.gradient, "measure", lambda *inputs: clock.measure("unet", lambda: measure(*inputs)))
    run.accelerator.backward = lambda loss: clock.measure("unet", lambda: backward(loss))
    return run


def losses_agree(pipeline: Any, batch: Batch, config: TrainingConfig) -> tuple[float, float]:
    """Both losses on one batch."""
    with torch.no_grad():
        ours, _ = compute_loss(pipeline.unet, None, batch, config, Running())
        added = {"text_embeds": batch.pooled_prompt_embeds, "time_ids": batch.time_ids}
        peers = pairwise_loss(
            pipeline.unet, batch.noisy_latents, batch.timesteps, batch.target, batch.prompt_embeds, added
        )
    return float(ours), float(peers)


def main() -> None:
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--pairs", 16), ("--rounds", 5), ("--steps", 4), ("--threads", 1)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--model", default="portraits", help="'portraits', 'small-sdxl', or a diffusers folder")
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    is_small = options.model == "small-sdxl"
    pipeline = small_sdxl(device) if is_small else load_pipeline(ModelConfig(name=options.model), device=device)
    config = TrainingConfig(
        objective="diffusion-dpo", beta=BETA, lora_rank=8, n_pairs=options.pairs, empty_caption_rate=0
    )
    work = make_work(pipeline, SamplingConfig(n_steps=4, width=options.px, height=options.px), 16)
    clocks = {"peer": Clock(device), "popalign": Clock(device)}
    with tempfile.TemporaryDirectory() as folder:
        ours = our_run(pipeline, work, config, clocks["popalign"], device, Path(folder))
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    optimizer = torch.optim.AdamW([w for w in pipeline.unet.parameters() if w.requires_grad], lr=1e-4)
    rates: dict[str, list[float]] = {"peer": [], "popalign": []}
    for round_number in range(options.rounds + 1):
        for name in rates:
            start = time.perf_counter()
            for step in range(1, options.steps + 1):
                if name == "peer":
                    peer_step(pipeline, scheduler, work, options.pairs, optimizer, clocks[name])
                else:
                    ours._take_step(step)
            rates[name].append(options.steps * options.pairs / (time.perf_counter() - start))
        if round_number == 0:  # warm-up
            rates = {name: [] for name in rates}
            for clock in clocks.values():
                clock.seconds.clear()
    batch = draw_batch(work.data, ours.process, config, work.time_ids, 1).to(device)
    our_loss, peer_loss = losses_agree(pipeline, batch, config)
    seconds = {
        name: options.rounds * options.steps * options.pairs / statistics.harmonic_mean(rates[name]) for name in rates
    }
    result = {
        "pairs_per_s": {name: round(statistics.median(values), 2) for name, values in rates.items()},
        "ratio": round(statistics.median(rates["popalign"]) / statistics.median(rates["peer"]), 2),
        "share_of_time": {
            name: {part: round(spent / seconds[name], 3) for part, spent in clock.seconds.items()}
            for name, clock in clocks.items()
        },
        "loss_on_one_batch": {"popalign": our_loss, "peer": peer_loss},
        "settings": vars(options) | {"device": str(device), "torch": torch.__version__},
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if abs(our_loss - peer_loss) > 1e-5 * max(1.0, abs(peer_loss)):
        raise SystemExit("the losses differ: the two do not do the same work")


if __name__ == "__main__":
    main()
