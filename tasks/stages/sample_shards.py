"""A shard of a sample: everything needed to sample it, in a record that can travel to another process or machine."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from popalign_core.config import ModelConfig, RuntimeConfig, SamplingConfig
from popalign_core.models.embeddings import PromptEmbeddings
from popalign_core.sampling.captions import CaptionPlan
from popalign_core.sampling.edits import Edits
from popalign_core.sampling.prediction import Captions
from popalign_core.sampling.safety import UNSAFE, load_safety_checker, unsafe_images
from popalign_core.sampling.watermark import watermark
from storage.formats.images import encode_png, image_column
from storage.formats.parquet import encode, file_name
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.common.tensors import encode_tensors
from tasks.common.trained_models import find_trained
from tasks.stages.sample_layouts import take_kept_layout
from tasks.workers.shard_worker import load_once
from tasks.workers.shardwise import ShardFiles

if TYPE_CHECKING:
    from popalign_core.sampling.sampler import Sampler


@dataclass(frozen=True)
class Shard:
    """What one shard is sampled from.

    Attributes:
        number: Its number.
        images: Its rows of table `images`, without pixels and latents.
        captions: Of its images.
        sampling: How they are sampled.
        model: The configured model.
        trained: Artifact of a trained model, sampled from in its place; None for none.
        runtime: Store, device, batch size.
    """

    number: int
    images: pd.DataFrame
    captions: Captions
    sampling: SamplingConfig
    model: ModelConfig
    trained: ArtifactRef | None
    runtime: RuntimeConfig


@dataclass(frozen=True)
class Shards(Mapping[int, Shard]):
    """The shards of a sample that are to be sampled, each made when asked for: all embeddings would fill the memory.

    Attributes:
        todo: Their numbers.
        images: Rows of table `images`, without pixels and latents.
        plan: What each image is sampled for.
        caption_ids: Ids of the embeddings; the last is the empty caption's.
        embeddings: Of all captions.
        layouts: [L, C, h, w] latents of the images that SDEdit starts from; None without.
        sampling: How images are sampled.
        model: The configured model.
        trained: Artifact of a trained model, sampled from in its place.
        runtime: Store, device, batch size, shard size.
    """

    todo: Sequence[int]
    images: pd.DataFrame
    plan: CaptionPlan
    caption_ids: list[str]
    embeddings: PromptEmbeddings
    layouts: Tensor | None
    sampling: SamplingConfig
    model: ModelConfig
    trained: ArtifactRef | None
    runtime: RuntimeConfig

    def __len__(self) -> int:
        return len(self.todo)

    def __iter__(self) -> Iterator[int]:
        return iter(self.todo)

    def __getitem__(self, number: int) -> Shard:
        part = slice(number * self.runtime.shard_size, (number + 1) * self.runtime.shard_size)
        images, row_of = self.images.iloc[part], {caption: row for row, caption in enumerate(self.caption_ids)}
        wanted = list(dict.fromkeys(self.plan.of_image[part]))
        captions = Captions(
            self.embeddings.rows([row_of[caption] for caption in wanted]),
            [wanted.index(caption) for caption in self.plan.of_image[part]],
            self.embeddings.rows([-1]),
            self._edits(part, row_of) if self.sampling.fair_diffusion else None,
            None if self.layouts is None else self.layouts[[index % len(self.layouts) for index in images["index"]]],
        )
        return Shard(number, images, captions, self.sampling, self.model, self.trained, self.runtime)

    def _edits(self, part: slice, row_of: Mapping[str, int]) -> Edits:
        concepts = self.plan.concepts[part]
        wanted = sorted({caption for image in concepts for caption, _ in image}) or [""]
        place = {caption: row for row, caption in enumerate(wanted)}
        shape = len(concepts), max(map(len, concepts))
        index, direction = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        for image, steered in enumerate(concepts):
            for edit, (caption, towards) in enumerate(steered):
                index[image, edit], direction[image, edit] = place[caption], towards
        return Edits(self.embeddings.rows([row_of[caption] for caption in wanted]), index, direction)


FindUnsafe = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
"""Says which of [B, H, W, 3] images are unsafe."""


def sample_shard(shard: Shard, on_images: Callable[[int], None] = lambda n: None) -> ShardFiles:
    """Sample a shard, on the device of the worker that this is called in.

    Images are encoded in threads of their own while the next batch is sampled.

    Args:
        shard: What to sample.
        on_images: Told how many images of the shard are sampled.
    """
    size = shard.sampling.width, shard.sampling.height
    asked = shard.model, shard.trained, shard.sampling.safety_checker, size
    sampler, find_unsafe = load_once(_load, *asked, runtime=shard.runtime, is_shared=True)
    latents, images, n_unsafe = list[Tensor](), list[Future[bytes] | None](), 0
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for pixels, final in sampler.sample(shard.captions, shard.images["seed"].tolist(), shard.sampling):
            unsafe = find_unsafe(pixels)
            n_unsafe += int(unsafe.sum())
            shown = watermark(pixels) if shard.sampling.watermark else pixels
            images += [
                None if is_unsafe else pool.submit(encode_png, image)
                for image, is_unsafe in zip(shown, unsafe, strict=True)
            ]
            latents.append(final)
            on_images(len(images))
        cells = [None if image is None else image.result() for image in images]
    return _pack(shard, cells, torch.cat(latents), n_unsafe)


def _load(
    model: ModelConfig,
    trained: ArtifactRef | None,
    safety_checker: str | None,
    size: tuple[int, int],
    runtime: RuntimeConfig,
    device: str,
) -> "tuple[Sampler, FindUnsafe]":
    """The sampler of a model, and what looks at its images; a trained model is fetched from the store first."""
    from popalign_core.sampling.sampler import load_sampler

    found = find_trained(open_store(runtime), trained, model) if trained else None
    choose = partial(take_kept_layout, size=size, runtime=runtime)
    sampler = load_sampler(model, runtime, device=device, trained=found, choose=choose)
    if safety_checker is None:
        return sampler, lambda pixels: np.zeros(len(pixels), dtype=bool)
    return sampler, partial(unsafe_images, load_safety_checker(safety_checker, sampler.device))


def _pack(shard: Shard, cells: list[bytes | None], latents: Tensor, n_unsafe: int) -> ShardFiles:
    name = f"latents-{shard.number:05d}.safetensors"
    frame = shard.images.assign(
        image=pd.Series(image_column(cells), index=shard.images.index),
        latents_file=name,
        latents_row=range(len(shard.images)),
    )
    files = {
        name: encode_tensors({"latents": latents}),
        file_name("images", shard.number): encode("images", frame),
    }
    counts = {"images": len(frame)} | ({UNSAFE: n_unsafe} if shard.sampling.safety_checker else {})
    return ShardFiles(files, counts)
