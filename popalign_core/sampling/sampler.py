"""A loaded model that samples any number of images, in batches that its memory holds."""

import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from torch import Tensor

from popalign_core.config import ModelConfig, RuntimeConfig, SamplingConfig
from popalign_core.errors import ConfigError, ResourceError
from popalign_core.machine import cache_folder
from popalign_core.models.denoisers import find_denoiser
from popalign_core.models.float8 import is_float8
from popalign_core.models.loading import load_pipeline, resolve_device
from popalign_core.sampling import engine
from popalign_core.sampling.engine import execution_device
from popalign_core.sampling.prediction import Captions

if TYPE_CHECKING:
    from popalign_core.models.trained_weights import TrainedModel

_log = logging.getLogger(__name__)

_SHARE_OF_FREE_MEMORY = 0.9
"""What a batch may take of it: the allocator needs room for fragments."""


SAMPLER_PARTS = ("unet", "transformer", "vae", "scheduler")
"""Components of a pipeline that sample images from embeddings."""


class Sampler:
    """A pipeline made ready to sample; it remembers which batch size fits."""

    def __init__(self, pipeline: Any, runtime: RuntimeConfig) -> None:
        """Lay out, fuse and compile the denoiser as the runtime asks for.

        Args:
            pipeline: Loaded; its denoiser and VAE are changed in place.
            runtime: Batch size, memory layout, compilation, offloading.

        Raises:
            ConfigError: When projections are to be fused whose weights are kept as float8.
        """
        self.pipeline = pipeline
        self.batch_size = runtime.batch_size
        self.device = execution_device(pipeline)
        self._is_measured = self.device.type != "cuda"
        _speed_up(pipeline, runtime)
        # float8 weights are cast in place at each use: threads that share them take turns
        self._turn = Lock() if is_float8(find_denoiser(pipeline)) else nullcontext()

    def sample(
        self, captions: Captions, seeds: Sequence[int], config: SamplingConfig
    ) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
        """Sample one image for each seed, batch by batch.

        When memory runs out the batch is halved and sampled again, and so are all that follow: an image does not depend
        on its batch beyond rounding.

        Args:
            captions: Of as many images.
            seeds: One an image.
            config: How they are sampled.

        Yields:
            Pixels [B, H, W, 3] uint8 and latents [B, C, h, w] float32 of each batch.

        Raises:
            ResourceError: When not even a single image fits.
        """
        self._fit(captions, seeds, config)
        start = 0
        while start < len(seeds):
            part = slice(start, start + self.batch_size)
            sampled = self._attempt(captions.part(part), seeds[part], config)
            if sampled is None:
                self._shrink(config)
                continue
            yield sampled
            start += len(sampled[0])

    def _attempt(
        self, captions: Captions, seeds: Sequence[int], config: SamplingConfig
    ) -> tuple[NDArray[np.uint8], Tensor] | None:
        """One batch, or None when it does not fit: the error is gone by then, and with it what it held on to."""
        try:
            with self._turn:
                return engine.sample_images(
                    self.pipeline,
                    captions.embeddings,
                    captions.unconditional,
                    captions.index,
                    seeds,
                    config,
                    edits=captions.edits,
                    start_latents=captions.start_latents,
                )
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            return None

    def _shrink(self, config: SamplingConfig) -> None:
        _free_memory()
        if self.batch_size == 1:
            raise ResourceError(
                f"memory runs out with one image of {config.width} x {config.height} px; set runtime.offload=true, "
                "a half-precision model.dtype or a smaller image, or free memory on the device"
            )
        self.batch_size //= 2
        _log.warning("memory ran out: continuing with batches of %d image(s)", self.batch_size)

    def _fit(self, captions: Captions, seeds: Sequence[int], config: SamplingConfig) -> None:
        """Once, on a CUDA device: lower the batch size to what its free memory holds."""
        if self._is_measured or len(seeds) < 2:
            return
        self._is_measured = True
        brief = config.model_copy(update={"n_steps": 2, "sdedit": None})
        captions = replace(captions, start_latents=None)

        def measure(n_images: int) -> int:
            _free_memory()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            part = slice(0, n_images)
            if self._attempt(captions.part(part), seeds[part], brief) is None:
                return 2**62
            return torch.cuda.max_memory_allocated(self.device) - before

        _free_memory()
        free, _ = torch.cuda.mem_get_info(self.device)
        self.batch_size = fitting_batch(self.batch_size, free, measure)
        _free_memory()


def load_sampler(
    model: ModelConfig,
    runtime: RuntimeConfig,
    *,
    device: str,
    trained: "TrainedModel | None" = None,
    choose: Callable[[Any], RuntimeConfig] | None = None,
) -> Sampler:
    """Load what sampling needs of a model, denoiser and VAE, and make it ready; the text encoders stay where they are.

    Args:
        model: Which.
        runtime: Layout, compilation, offloading, batch size.
        device: Name of a device; `runtime.device` unless there is one for each worker.
        trained: Loaded in place of the model.
        choose: What the runtime becomes when the pipeline is known.

    Raises:
        ConfigError: As `resolve_device`, and when projections are to be fused whose weights are kept as float8.
        MissingWeightsError: As `load_pipeline`.
    """
    place = resolve_device(device)
    is_offloaded = runtime.offload and place.type != "cpu"
    first = torch.device("cpu") if is_offloaded else place
    pipeline = load_pipeline(model, device=first, trained=trained, components=SAMPLER_PARTS)
    if is_offloaded:
        pipeline.enable_model_cpu_offload(device=place)
    return Sampler(pipeline, runtime if choose is None else choose(pipeline))


def fitting_batch(limit: int, free: int, measure: Callable[[int], int]) -> int:
    """The largest batch that free memory holds, going by what one image takes and what a second one adds.

    Args:
        limit: The largest batch that is wanted.
        free: Bytes.
        measure: Number of images -> bytes at the peak.

    Returns:
        At least 1; the sampler still halves it when memory runs out.
    """
    one, two = measure(1), measure(2)
    room = int(_SHARE_OF_FREE_MEMORY * free) - one
    return max(1, min(limit, 1 + room // max(1, two - one)))


def _speed_up(pipeline: Any, runtime: RuntimeConfig) -> None:
    denoiser = find_denoiser(pipeline)
    if runtime.fuse_qkv and is_float8(denoiser):
        raise ConfigError(
            "runtime.fuse_qkv does not fuse weights that model.storage keeps as float8; leave one of the two out"
        )
    if runtime.fuse_qkv and hasattr(denoiser, "fuse_qkv_projections"):
        denoiser.fuse_qkv_projections()
    if runtime.channels_last:  # "auto" too: what nobody measured
        lay_out(pipeline, channels_last=True)
    if runtime.compile:
        compile_blocks(denoiser)


def lay_out(pipeline: Any, *, channels_last: bool) -> None:
    """Put the weights of denoiser and VAE into one memory layout or the other, in place."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for module in (find_denoiser(pipeline), pipeline.vae):
        module.to(memory_format=memory_format)


def compile_blocks(denoiser: Any) -> None:
    """Compile a denoiser's repeated blocks; what is compiled is kept for the next process."""
    # /tmp, the default, is emptied at every start of the machine, and compiling takes minutes
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    denoiser.compile_repeated_blocks()


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
