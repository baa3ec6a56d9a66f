"""Stages made shard by shard: finding the shards that are left, running them on workers, storing the results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import pandas as pd

from popalign_core.config import RuntimeConfig
from storage.store import ArtifactRef, Build
from tasks.common.stage_object import Inputs, Progress, ViewT, open_store, set_threads
from tasks.workers.fanout import fan_out
from tasks.workers.shard_worker import forget

Job = TypeVar("Job")
JobIn = TypeVar("JobIn", contravariant=True)


@dataclass(frozen=True)
class ShardFiles:
    """A shard as it will lie in the artifact.

    Attributes:
        files: Name -> content.
        counts: What is counted in it.
    """

    files: Mapping[str, bytes]
    counts: Mapping[str, int]


class ShardWork(Protocol[JobIn]):
    """A function of a module that makes one shard, in whichever process it is called."""

    def __call__(self, job: JobIn, /, on_images: Callable[[int], None] = ...) -> ShardFiles:
        """The shard of a job; `on_images` is told how many of its images are done."""
        ...


@dataclass(frozen=True)
class ImageShard(Generic[ViewT]):
    """A shard of images to be looked at: where it is, not what is in it.

    Attributes:
        number: Its number.
        prompts: Artifact with all prompts.
        sample: Artifact with the images.
        view: Of the stage that looks.
        runtime: Store, device, batch size.
    """

    number: int
    prompts: ArtifactRef
    sample: ArtifactRef
    view: ViewT
    runtime: RuntimeConfig

    def read(self) -> pd.DataFrame:
        """Its rows of table `images`."""
        return open_store(self.runtime).read_table(self.sample, "images", shard=self.number)


def look_at_shards(
    build: Build,
    work: ShardWork[ImageShard[ViewT]],
    inputs: Inputs,
    view: ViewT,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> int:
    """Make a shard of the build for each shard of a sample, as `make_shards` does; how many there are."""
    prompts, sample = inputs["prompts"], inputs["sample"]
    lengths = inputs.store.rows_by_shard(sample, "images")

    def jobs(todo: Sequence[int]) -> Mapping[int, ImageShard[ViewT]]:
        return {number: ImageShard(number, prompts, sample, view, runtime) for number in todo}

    make_shards(build, work, jobs, lengths, runtime, on_progress)
    return len(lengths)


def make_shards(
    build: Build,
    work: ShardWork[Job],
    jobs: Callable[[Sequence[int]], Mapping[int, Job]],
    lengths: Sequence[int],
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    """Make the shards that are not done yet, by the workers that the runtime asks for, and mark each as it comes.

    Args:
        build: Of the stage.
        work: Makes a shard; what it needs besides its job it loads with `tasks.workers.shard_worker.load_once`.
        jobs: The numbers of the shards left to what `work` is called with; not called when none is left.
        lengths: Images a shard.
        runtime: Who works.
        on_progress: Told how many images are done.

    Raises:
        PopAlignError: Whatever a worker raises, as it is.
    """
    todo = [number for number in range(len(lengths)) if not build.shard_done(number)]
    total = sum(lengths)
    done = total - sum(lengths[number] for number in todo)

    def keep(number: int, shard: ShardFiles) -> None:
        nonlocal done
        for name, data in shard.files.items():
            build.write_file(name, data)
        build.mark_shard(number, shard.counts)
        done += lengths[number]
        on_progress(done, total)

    on_progress(done, total)
    if not todo:
        return
    set_threads(runtime)
    if runtime.runner == "inline":
        work = partial(work, on_images=lambda n: on_progress(done + n, total))
    try:
        fan_out(work, jobs(todo), runtime, keep, stage=build.ref.stage)
    finally:
        forget()
