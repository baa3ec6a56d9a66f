"""Layouts of a sampler that change its speed and, beyond rounding, no image; and which is the fastest here."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from popalign_core.config import SamplingConfig
from popalign_core.sampling.prediction import Captions
from popalign_core.sampling.sampler import Sampler, lay_out

WORTH = 1.03
"""How many times faster a layout must be before it takes the default's place: less is noise."""
_N_ROUNDS, _N_STEPS = 5, 2


@dataclass(frozen=True)
class Layout:
    """How a sampler works.

    Attributes:
        channels_last: Whether convolutions find the channels of a pixel side by side.
        batch_size: Images a batch.
        compile: Whether the denoiser's repeated blocks are compiled.
    """

    channels_last: bool
    batch_size: int
    compile: bool = False


def time_layouts(
    layouts: Sequence[Layout],
    work: Callable[[Layout], object],
    *,
    limit_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Layout, list[float]]:
    """Seconds that the same work takes in each layout, round by round; in each all take turns.

    Args:
        layouts: To try.
        work: The same images, in a layout; what it does the first time (compile, choose kernels) is not timed.
        limit_s: No further round begins later than this; there are two at least.
        clock: Seconds, ever increasing.
    """
    began, seconds = clock(), {layout: list[float]() for layout in layouts}
    for layout in layouts:
        work(layout)
    for number in range(_N_ROUNDS):
        if number > 1 and clock() - began > limit_s:
            break
        for layout in layouts:
            start = clock()
            work(layout)
            seconds[layout].append(clock() - start)
    return seconds


def fastest(seconds: Mapping[Layout, Sequence[float]], default: Layout) -> tuple[Layout, float]:
    """The fastest layout, and how many times faster than the default it is, by the median of the rounds.

    The default stays where none is faster by `WORTH`, or not in nearly all rounds: other work comes and goes.
    """
    found = {default: 1.0}
    for layout, own in seconds.items():
        gains = sorted(base / mine for base, mine in zip(seconds[default], own, strict=True))
        if gains[len(gains) // 4] > 1 and statistics.median(gains) > WORTH:
            found[layout] = statistics.median(gains)
    best = max(found, key=lambda layout: found[layout])
    return best, found[best]


def find_fastest(
    batch_size: int, work: Callable[[Layout], object], *, limit_s: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[Layout, float]:
    """The fastest layout, and how many times faster than the default it is: first the memory layout, then the batch.

    Args:
        batch_size: The largest batch, which is the default's.
        work: As of `time_layouts`.
        limit_s: Of either part.
        clock: Seconds, ever increasing.
    """
    default = Layout(channels_last=True, batch_size=batch_size)
    seconds = time_layouts([default, replace(default, channels_last=False)], work, limit_s=limit_s, clock=clock)
    whole, gain = fastest(seconds, default)
    parts = [replace(whole, batch_size=n) for n in _parts(batch_size)]
    seconds = time_layouts([whole, *parts], work, limit_s=limit_s, clock=clock)
    best, more = fastest(seconds, whole)
    return best, gain * more


def _parts(batch_size: int) -> list[int]:
    """The batch in halves and in quarters, as far as they are images."""
    return [batch_size // n for n in (2, 4) if batch_size >= n]


def work_of(sampler: Sampler, captions: Captions, config: SamplingConfig) -> Callable[[Layout], None]:
    """Sampling the same few images in any layout, in few steps: layouts are compared, so their number does not count.

    Args:
        sampler: The layout is put on it.
        captions: Of the images.
        config: How images are sampled.
    """
    brief = config.model_copy(update={"n_steps": min(_N_STEPS, config.n_steps), "sdedit": None, "fair_diffusion": None})
    captions = replace(captions, edits=None, start_latents=None)

    def work(layout: Layout) -> None:
        lay_out(sampler.pipeline, channels_last=layout.channels_last)
        sampler.batch_size = layout.batch_size
        for _ in sampler.sample(captions, range(len(captions.index)), brief):
            pass  # the pixels come back to the CPU: a GPU is waited for

    return work


def architecture(modules: Iterable[torch.nn.Module]) -> list[str]:
    """What stands for a model's architecture: each module's class, number of weights and precision."""
    return [
        f"{type(module).__name__} {sum(each.numel() for each in module.parameters())} {module.dtype}"
        for module in modules
    ]
