"""Drawing a population: the loop that public scripts run, the stock pipeline in batches, and this engine.

The first peer calls diffusers' pipeline for one prompt and one image at a time, as the public research script does; the
second hands the same pipeline whole batches. This engine embeds each distinct prompt once, takes both halves of the
guidance in one forward, and lays the weights out as is fastest here. All draw the same images from the same noise with
the same scheduler, steps, guidance and dtype, in turns, in one process; their images must agree within a grey level or
two of rounding. In the warm-up the stock pipeline tries each of `--batches` and keeps its best; this engine tries the
layouts that `popalign plan --measure` tries, with the largest of them as the limit, and keeps the fastest.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --prompts 4 --images 16 --threads 2 --compile

`overhead` is what this engine spends outside UNet and VAE. Measured on two cores, several runs: with two threads 5.1 to
5.7 times the images a second of one image a call and 1.12 to 1.16 times the stock pipeline's best batch (1.28 with
--compile), with one thread 3.3 and 1.14 to 1.17 times; overhead 1%.
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

from popalign_core.config import ModelConfig, RuntimeConfig, SamplingConfig
from popalign_core.models.embeddings import embed_prompts
from popalign_core.models.loading import load_pipeline, resolve_device
from popalign_core.portraits.occupations import OCCUPATIONS
from popalign_core.sampling.engine import initial_noise
from popalign_core.sampling.layouts import Layout, find_fastest, work_of
from popalign_core.sampling.prediction import Captions
from popalign_core.sampling.sampler import Sampler, lay_out
from popalign_core.sampling.schedulers import make_scheduler

Pixels = NDArray[np.uint8]
LIMIT_S = 20.0
"""Seconds of trying layouts, and as many of batches."""


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


def run_engine(sampler: Sampler, prompts: list[str], index: list[int], size: SamplingConfig) -> Pixels:
    """This engine, from prompts to pixels."""
    embeddings, empty = embed_prompts(sampler.pipeline, prompts, 32), embed_prompts(sampler.pipeline, [""], 1)
    drawn = sampler.sample(Captions(embeddings, index, empty), list(range(len(index))), size)
    return np.concatenate([pixels for pixels, _ in drawn])


def choose(sampler: Sampler, prompts: list[str], index: list[int], size: SamplingConfig, batch: int) -> Layout:
    """The layout that samples fastest here, put on the sampler."""
    embeddings, empty = embed_prompts(sampler.pipeline, prompts, 32), embed_prompts(sampler.pipeline, [""], 1)
    work = work_of(sampler, Captions(embeddings, index, empty), size)
    layout, _ = find_fastest(batch, work, limit_s=LIMIT_S)
    lay_out(sampler.pipeline, channels_last=layout.channels_last)
    return layout


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--prompts", 4), ("--images", 16), ("--rounds", 3), ("--threads", 1)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--model", default="portraits", help="'portraits' or a diffusers folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="this engine's denoiser, not the stock one")
    return parser.parse_args()


def main() -> None:
    """Run and print one JSON object."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    model = ModelConfig(name=options.model, dtype=options.dtype)
    pipeline, ours = load_pipeline(model, device=device), load_pipeline(model, device=device)
    pipeline.watermark = None  # diffusers' own images would carry one wherever the package is installed
    size = SamplingConfig(n_steps=options.steps, guidance_scale=options.guidance, width=options.px, height=options.px)
    pipeline.scheduler = make_scheduler(pipeline.scheduler, size.scheduler)
    sampler = Sampler(ours, RuntimeConfig(batch_size=options.batches[0], compile=options.compile))
    prompts = [f"a photo of a {occupation.name}" for occupation in OCCUPATIONS[: options.prompts]]
    index = [number for number in range(len(prompts)) for _ in range(options.images)]
    noise = initial_noise(pipeline, range(len(index)), size).to(device)
    timed = Timed(device)
    ours.unet.forward, ours.vae.decode = timed.wrap(ours.unet.forward), timed.wrap(ours.vae.decode)

    def one_by_one(batch: int) -> Pixels:
        return np.concatenate([stock(pipeline, [prompts[n]], noise[i : i + 1], size) for i, n in enumerate(index)])

    def batched(batch: int) -> Pixels:
        parts = [slice(start, start + batch) for start in range(0, len(index), batch)]
        return np.concatenate([stock(pipeline, [prompts[n] for n in index[p]], noise[p], size) for p in parts])

    def engine(batch: int) -> Pixels:
        sampler.batch_size = batch
        return run_engine(sampler, prompts, index, size)

    systems = {"one image a call": one_by_one, "stock, batched": batched, "popalign": engine}
    pictures: dict[str, Pixels] = {}

    def measure(name: str, batch: int) -> float:
        timed.seconds, start = 0.0, time.perf_counter()
        pictures[name] = systems[name](batch)
        return time.perf_counter() - start

    measure("stock, batched", options.batches[0])
    seconds = {batch: measure("stock, batched", batch) for batch in options.batches}
    layout = choose(sampler, prompts, index, size, min(max(options.batches), len(index)))
    best = {"one image a call": 1, "stock, batched": min(seconds, key=lambda batch: seconds[batch])}
    best["popalign"] = layout.batch_size
    rates: dict[str, list[float]] = {name: [] for name in systems}
    overheads = []
    for _ in range(options.rounds):
        for name in systems:
            seconds_taken = measure(name, best[name])
            rates[name].append(len(index) / seconds_taken)
            if name == "popalign":
                overheads.append(1 - timed.seconds / seconds_taken)
    median = {name: statistics.median(values) for name, values in rates.items()}
    apart = {name: int(np.abs(pictures[name].astype(int) - pictures["popalign"].astype(int)).max()) for name in systems}
    result = {
        "images_per_s": {name: round(value, 2) for name, value in median.items()},
        "ratio": {name: round(median["popalign"] / value, 2) for name, value in median.items()},
        "best_batch": best,
        "channels_last": layout.channels_last,
        "overhead": round(statistics.median(overheads), 4),
        "largest_difference_in_grey_levels": apart,
        "settings": vars(options) | {"device": str(device), "torch": torch.__version__},
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if max(apart.values()) > 4:
        raise SystemExit("the images differ: the systems do not do the same work")


if __name__ == "__main__":
    main()
