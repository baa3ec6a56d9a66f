"""The layout that samples fastest on this machine: found by trying, kept beside the rates, taken by every sampler."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.machine import describe_machine
from popalign_core.models.denoisers import find_denoiser
from popalign_core.sampling.layouts import (
    Layout,
    architecture,
    fastest,
    find_fastest,
    time_layouts,
    work_of,
)
from storage.store import ArtifactRef
from tasks.common.kept_speeds import find_kept, keep_value
from tasks.common.stage_object import open_store, set_threads

LIMIT_S = 4.0
"""Seconds of trying before the last round."""


def take_kept_layout(pipeline: Any, *, size: tuple[int, int], runtime: RuntimeConfig) -> RuntimeConfig:
    """The runtime with what was found to be fastest here, where `channels_last` is auto and something was.

    Args:
        pipeline: Loaded.
        size: Width and height in px.
        runtime: Its batch size stays the upper limit.
    """
    if runtime.channels_last != "auto":
        return runtime
    kept = find_kept("layouts", _about(pipeline, size, runtime))
    if kept is None:
        return runtime
    return runtime.model_copy(
        update={
            "channels_last": bool(kept["channels_last"]),
            "batch_size": max(1, min(runtime.batch_size, int(kept["batch_size"]))),
            "compile": runtime.compile or bool(kept["compile"]),
        }
    )


def choose_layout(sample: ArtifactRef, config: PipelineConfig, runtime: RuntimeConfig, here: RuntimeConfig) -> Layout:
    """Try the layouts on the captions of a sample, and keep the fastest for this machine and model.

    Args:
        sample: Of the configured model.
        config: Model, size, sampler.
        runtime: Of the runs that it is for.
        here: Where the sample lies, and the largest batch to try.

    Raises:
        PopAlignError: When the model cannot be loaded.
    """
    from popalign_core.sampling.prediction import Captions
    from popalign_core.sampling.sampler import compile_blocks, load_sampler
    from tasks.common.tensors import read_embeddings

    set_threads(runtime)
    ids, embeddings = read_embeddings(open_store(here).localize(sample, "embeddings.safetensors"))
    sampler = load_sampler(config.model, here, device=runtime.device)
    about = _about(sampler.pipeline, (config.sampling.width, config.sampling.height), runtime)
    n_images, n_captions = here.batch_size, len(ids) - 1
    captions = Captions(
        embeddings.rows(list(range(n_captions))), [n % n_captions for n in range(n_images)], embeddings.rows([-1])
    )
    work = work_of(sampler, captions, config.sampling)
    best, gain = find_fastest(n_images, work, limit_s=LIMIT_S)
    if sampler.device.type == "cuda" and not runtime.compile and config.model.storage is None:
        seconds = time_layouts([best], work, limit_s=LIMIT_S)  # no turns: compiling cannot be undone
        compiled = replace(best, compile=True)
        compile_blocks(find_denoiser(sampler.pipeline))
        seconds |= time_layouts([compiled], work, limit_s=LIMIT_S)
        n_rounds = min(map(len, seconds.values()))
        best, more = fastest({layout: each[:n_rounds] for layout, each in seconds.items()}, best)
        gain *= more
    # a batch that was cut down for the trial says nothing against the whole one
    size = runtime.batch_size if best.batch_size == n_images else best.batch_size
    found = replace(best, batch_size=size)
    keep_value("layouts", about, asdict(found) | {"gain": round(gain, 3)})
    return found


def _about(pipeline: Any, size: tuple[int, int], runtime: RuntimeConfig) -> Mapping[str, Any]:
    """What a layout is kept for."""
    return {
        "machine": describe_machine(runtime.device, runtime.n_threads),
        "model": architecture((find_denoiser(pipeline), pipeline.vae)),
        "size": list(size),
        "batch_size": runtime.batch_size,
        "runtime": [runtime.compile, runtime.fuse_qkv, runtime.offload],
    }
