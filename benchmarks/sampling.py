"""Drawing a population: the loop that public scripts run, the stock pipeline in batches, and this engine.

The first peer calls diffusers' pipeline for one prompt and one image at a time, as the public research script does; the
second hands the same pipeline whole batches. This engine embeds each distinct prompt once and takes both halves of the
guidance in one forward. All draw the same images from the same noise with the same scheduler, steps, guidance and
dtype, in turns, in one process; their pictures must agree within a grey level or two of rounding.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --prompts 4 --images 16 --batch 32 --threads 2

`overhead` is what this engine spends outside UNet and VAE. Measured on two cores with two threads: 4.3 times the images
a second of one image a call, the same as the stock pipeline in batches, overhead 2%; with one thread 2.9 times.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from popalign_core.config import ModelConfig, SamplingConfig
from popalign_core.portraits.occupations import OCCUPATIONS
from popalign_core.sampling.embeddings import embed_prompts
from popalign_core.sampling.engine import initial_noise, sample_images
from popalign_core.sampling.models import load_pipeline, resolve_device
from popalign_core.sampling.schedulers import make_scheduler

Pixels = NDArray[np.uint8]


class Timed:
    """Adds up the seconds that a module's calls take."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed; a GPU is waited for."""

        def timed(*inputs: Any, **more: Any) -> Any:
            start = self._now()
            result = call(*inputs, **more)
            self.seconds += self._now() - start
            return result

        return timed

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def stock(pipeline: Any, texts: list[str], latents: torch.Tensor, size: SamplingConfig) -> Pixels:
    """The stock pipeline on a list of prompts, one image each."""
    output = pipeline(
        prompt=texts,
        latents=latents,
        num_inference_steps=size.n_steps,
        guidance_scale=size.guidance_scale,
        width=size.width,
        height=size.height,
        output_type="pil",
    )
    return np.stack([np.asarray(image) for image in output.images])


def main() -> None:
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--prompts", 4), ("--images", 16), ("--batch", 32), ("--rounds", 3), ("--threads", 1)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--model", default="portraits", help="'portraits' or a diffusers folder")
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    pipeline = load_pipeline(ModelConfig(name=options.model), device=device)
    size = SamplingConfig(n_steps=options.steps, guidance_scale=options.guidance, width=options.px, height=options.px)
    pipeline.scheduler = make_scheduler(pipeline.scheduler, size.scheduler)
    prompts = [f"a photo of a {occupation.name}" for occupation in OCCUPATIONS[: options.prompts]]
    index = [number for number in range(len(prompts)) for _ in range(options.images)]
    seeds = list(range(len(index)))
    noise = initial_noise(pipeline, seeds, size).to(device)
    parts = [slice(start, start + options.batch) for start in range(0, len(index), options.batch)]
    timed = Timed(device)

    def one_by_one() -> Pixels:
        return np.concatenate([stock(pipeline, [prompts[n]], noise[i : i + 1], size) for i, n in enumerate(index)])

    def batched() -> Pixels:
        return np.concatenate([stock(pipeline, [prompts[n] for n in index[p]], noise[p], size) for p in parts])

    def engine() -> Pixels:
        forward, decode = pipeline.unet.forward, pipeline.vae.decode
        pipeline.unet.forward, pipeline.vae.decode = timed.wrap(forward), timed.wrap(decode)
        try:
            embeddings, empty = embed_prompts(pipeline, prompts, 32), embed_prompts(pipeline, [""], 1)
            drawn = [sample_images(pipeline, embeddings, empty, index[p], seeds[p], size)[0] for p in parts]
        finally:
            pipeline.unet.forward, pipeline.vae.decode = forward, decode
        return np.concatenate(drawn)

    systems = {"one image a call": one_by_one, "stock, batched": batched, "popalign": engine}
    rates: dict[str, list[float]] = {name: [] for name in systems}
    pictures: dict[str, Pixels] = {}
    engine_seconds = 0.0
    for round_number in range(options.rounds + 1):
        for name, draw in systems.items():
            start = time.perf_counter()
            pictures[name] = draw()
            seconds = time.perf_counter() - start
            if round_number == 0:  # warm-up
                timed.seconds = 0.0
                continue
            rates[name].append(len(index) / seconds)
            engine_seconds += seconds if name == "popalign" else 0.0
    median = {name: statistics.median(values) for name, values in rates.items()}
    apart = {name: int(np.abs(pictures[name].astype(int) - pictures["popalign"].astype(int)).max()) for name in systems}
    result = {
        "images_per_s": {name: round(value, 2) for name, value in median.items()},
        "ratio": {name: round(median["popalign"] / value, 2) for name, value in median.items()},
        "overhead": round(1 - timed.seconds / engine_seconds, 4),
        "largest_difference_in_grey_levels": apart,
        "settings": vars(options) | {"device": str(device), "torch": torch.__version__},
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if max(apart.values()) > 4:
        raise SystemExit("the pictures differ: the systems do not do the same work")


if __name__ == "__main__":
    main()
