"""Stage `sample`: images and their final latents, in shards that survive a kill.

One request serves the preference data (training prompts), the evaluation (evaluation prompts) or a round of training on
the policy's own images (neutral training prompts), of the configured model or of a trained one. The seed of an image
depends on prompt and index only, so both models draw the same noise.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd

from popalign_core.config import Axis, ModelConfig, PipelineConfig, RuntimeConfig, SamplingConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id, image_seed
from popalign_core.prompts.benchmarks import benchmarks_of
from popalign_core.sampling.captions import plan_captions
from popalign_core.sampling.safety import UNSAFE, checker_source, find_safety_checker, safety_hash
from popalign_core.sampling.watermark import check_watermark
from storage.store import ArtifactRef, Build
from tasks.common.hub_models import keep_hub_hash
from tasks.common.image_tables import drops_table
from tasks.common.measuring import base_model, folder_digest, unhashed_base
from tasks.common.needs import Need, machine_needs, model_needs
from tasks.common.stage_object import Inputs, Progress, Stage, View
from tasks.common.trained_models import find_trained
from tasks.workers.shardwise import make_shards

if TYPE_CHECKING:
    from torch import Tensor

    from popalign_core.models.embeddings import PromptEmbeddings
    from popalign_core.models.trained_weights import TrainedModel
    from popalign_core.sampling.captions import CaptionPlan

Purpose = Literal["preferences", "evaluation", "round"]
SPLITS: dict[Purpose, str] = {"preferences": "train", "evaluation": "eval", "round": "train"}
_LAYOUTS_VERSION = "2-"
"""How layouts are decoded: a part of the keys that have any, so that all others stay."""


class SampleView(View):
    """Which images are sampled, from which model and how.

    Attributes:
        purpose: Which prompts.
        n_images: Images a prompt, by benchmark.
        sampling: The sampler's settings; evaluation images have a seed of their own.
        model: The configured model; for a trained one it says how weights are kept, and may be its base.
        is_trained: Whether the images come from a trained model.
        axes: Where an identity is drawn for each image; else none.
        batch_size: Images a forward where the configuration says so; None leaves it to the runtime.
    """

    purpose: Purpose
    n_images: dict[str, int]
    sampling: SamplingConfig
    model: ModelConfig
    is_trained: bool
    axes: tuple[Axis, ...]
    batch_size: int | None = None

    @classmethod
    def of(
        cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, purpose: Purpose, number: int = 0
    ) -> Self:
        """Of one request: training or evaluation prompts, or those of the round of a number, from 1; the configured or
        a trained model.
        """
        sampling, is_trained = sampling_config(config, purpose, number), "model" in inputs
        draws_identities = sampling.inject_identity or sampling.fair_diffusion is not None
        return cls(
            purpose=purpose,
            n_images=n_images(config, purpose),
            sampling=sampling,
            model=config.model if is_trained else base_model(config.model),
            is_trained=is_trained,
            axes=config.identity_axes if draws_identities else (),
            batch_size=config.training.population.round_batch if purpose == "round" else None,
        )

    def hashed(self) -> dict[str, Any]:
        """Weights and images by their content; a trained model is an input."""
        from popalign_core.models.loading import model_hash

        weights = {"dtype": self.model.dtype} | ({} if self.is_trained else {"hash": model_hash(self.model)})
        if self.model.storage is not None:  # absent from the keys of all others
            weights["storage"] = self.model.storage
        return {
            "purpose": self.purpose,
            "n_images": self.n_images,
            "sampling": self._hashed_sampling(),
            "model": weights,
        } | ({} if self.batch_size is None else {"batch_size": self.batch_size})

    def unhashed(self) -> dict[str, str]:
        """Where the base of a trained model lies."""
        return unhashed_base() if self.is_trained else {}

    def _hashed_sampling(self) -> dict[str, Any]:
        """The settings with the content of folders in place of their paths, and the axes where they matter."""
        sampling = self.sampling
        hashed = sampling.model_dump(mode="json", exclude={"sdedit": {"folder"}, "safety_checker": True})
        if sampling.sdedit is not None:
            hashed["layouts"] = _LAYOUTS_VERSION + folder_digest(image_folder(sampling.sdedit.folder))
        if sampling.safety_checker is not None:
            hashed["safety_checker"] = safety_hash(sampling.safety_checker)
        if self.axes:
            hashed["axes"] = [axis.model_dump(mode="json") for axis in self.axes]
        return hashed


def n_images(config: PipelineConfig, purpose: Purpose) -> dict[str, int]:
    """Images a prompt, by benchmark."""
    if purpose == "round":
        return {"neutral": config.training.population.n_images}
    if purpose == "preferences":
        drawn = config.preferences
        return {"neutral": drawn.n_neutral, "specific": drawn.n_specific, "generic": drawn.n_retained}
    counts = config.evaluation
    by_kind = {"neutral": counts.n_neutral, "specific": counts.n_specific, "generic": counts.n_generic}
    named = config.prompts.benchmarks.items()
    return by_kind | {name: benchmark.n_images or by_kind[benchmark.kind] for name, benchmark in named}


def sampling_config(config: PipelineConfig, purpose: Purpose, number: int = 0) -> SamplingConfig:
    """The sampler's settings; evaluation images have a seed of their own, and so has each round of each replicate."""
    if purpose == "preferences":
        return config.sampling
    if purpose == "round":
        seed = image_seed(config.sampling.seed, f"round/{config.training.seed}", number)
        return config.sampling.model_copy(update={"seed": seed})
    return config.sampling.model_copy(update={"seed": config.evaluation.seed})


def _fill(view: SampleView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write tables `images` and `drops`, `latents-*.safetensors` and `embeddings.safetensors`.

    Raises:
        InputError: When no prompt is of the purpose's split.
        MissingWeightsError: When the model's weights are absent.
    """
    runtime = fix_batches(runtime, view.batch_size)
    table = inputs.read_table("prompts", "prompts")
    table = table[table["split"] == SPLITS[view.purpose]].reset_index(drop=True)
    if view.sampling.watermark:
        check_watermark(width=view.sampling.width, height=view.sampling.height)
    images = list_images(table, view.n_images, build.ref.key, view.sampling)
    _sample_shards(build, table, images, inputs, view, runtime, on_progress)
    build.write_table("drops", drops_table(build.ref.stage, {UNSAFE: build.sum_counts().get(UNSAFE, 0)}))


def fix_batches(runtime: RuntimeConfig, batch_size: int | None) -> RuntimeConfig:
    """The runtime with batches of a given size, and with kernels and layout that no setting of a machine chooses.

    An image depends on its batch by rounding alone, but training on the policy's own images asks which class it is of,
    and an image at the border may change sides: so here neither batches, shards, workers, layout nor compilation have a
    say. What is left are device, threads, and a device whose memory does not hold the batch, where it gets smaller.

    Args:
        runtime: Of this machine.
        batch_size: Images a forward; None leaves the runtime as it is.
    """
    if batch_size is None:
        return runtime
    fixed = {"batch_size": batch_size, "shard_size": 8 * batch_size, "channels_last": True}
    return runtime.model_copy(update=fixed | {"compile": False, "fuse_qkv": False})


def list_images(
    prompts: pd.DataFrame, counts: Mapping[str, int], sample_key: str, config: SamplingConfig
) -> pd.DataFrame:
    """Every image to sample, prompt by prompt: the `images` table before its pixels and latents.

    Args:
        prompts: Prompts of one split.
        counts: Images a prompt, by benchmark.
        sample_key: Key of the artifact.
        config: Seed and size.

    Raises:
        InputError: When there is nothing to sample.
    """
    rows = [
        {
            "image_id": content_id("image", sample_key, prompt.prompt_id, index),
            "prompt_id": prompt.prompt_id,
            "index": index,
            "seed": image_seed(config.seed, str(prompt.prompt_id), index),
        }
        for prompt, benchmark in zip(prompts.itertuples(), benchmarks_of(prompts), strict=True)
        for index in range(counts.get(benchmark, 0))
    ]
    if not rows:
        raise InputError(
            f"no image to sample: 0 of {len(prompts)} prompts are of the benchmarks {sorted(counts)}; add prompts"
        )
    return pd.DataFrame(rows).assign(width=config.width, height=config.height)


def _sample_shards(
    build: Build,
    prompts: pd.DataFrame,
    images: pd.DataFrame,
    inputs: Inputs,
    view: SampleView,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    from tasks.stages.sample_shards import Shards, sample_shard

    size, trained = runtime.shard_size, inputs.get("model")
    build.use_shard_size(size)
    if trained is None:
        keep_hub_hash(inputs.store, view.model)

    def jobs(todo: Sequence[int]) -> Shards:
        plan = plan_captions(prompts, images, view.axes, view.sampling)
        loaded = None if trained is None else find_trained(inputs.store, trained, view.model)
        ids, embeddings = _embeddings(build, plan, view.model, loaded, runtime)
        layouts = _layout_latents(view, loaded, runtime)
        return Shards(todo, images, plan, ids, embeddings, layouts, view.sampling, view.model, trained, runtime)

    lengths = [len(images.iloc[start : start + size]) for start in range(0, len(images), size)]
    make_shards(build, sample_shard, jobs, lengths, runtime, on_progress)


def _embeddings(
    build: Build, plan: "CaptionPlan", model: ModelConfig, trained: "TrainedModel | None", runtime: RuntimeConfig
) -> "tuple[list[str], PromptEmbeddings]":
    """Ids and embeddings of all captions and, last, of the empty one; kept, so that a resumed run reads the same ones.

    The text encoders are loaded for this alone, and gone when the denoiser comes.
    """
    from popalign_core.models.embeddings import TEXT_PARTS, embed_prompts
    from popalign_core.models.loading import load_pipeline, resolve_device
    from tasks.common.tensors import read_embeddings, write_embeddings

    path = build.folder / "embeddings.safetensors"
    if not os.path.exists(path):
        device = resolve_device(runtime.device)
        pipeline = load_pipeline(model, device=device, trained=trained, components=TEXT_PARTS)
        embeddings = embed_prompts(pipeline, [*plan.texts.values(), ""], runtime.batch_size)
        write_embeddings(path, [*plan.texts, ""], embeddings)
    return read_embeddings(path)


def _layout_latents(view: SampleView, trained: "TrainedModel | None", runtime: RuntimeConfig) -> "Tensor | None":
    """Latents [L, C, h, w] of the images that SDEdit starts from, in the order of their names; None without."""
    sampling = view.sampling
    if sampling.sdedit is None:
        return None
    from popalign_core.models.loading import load_pipeline, resolve_device
    from popalign_core.models.pixels import fit_image
    from popalign_core.models.vae import encode_pixels

    images = []
    for path in sorted(path for path in image_folder(sampling.sdedit.folder).iterdir() if path.is_file()):
        pixels = fit_image(path.read_bytes(), sampling.width, sampling.height)
        if pixels is None:
            raise InputError(f"{path} is not an image; sampling.sdedit.folder must hold images only")
        images.append(pixels)
    device = resolve_device(runtime.device)
    pipeline = load_pipeline(view.model, device=device, trained=trained, components=("vae",))
    return encode_pixels(pipeline.vae, np.stack(images))


def image_folder(folder: str) -> Path:
    """A folder with files in it.

    Raises:
        InputError: When there is none.
    """
    path = Path(folder)
    if not path.is_dir() or not any(each.is_file() for each in path.iterdir()):
        raise InputError(f"sampling.sdedit.folder {folder!r} is not a folder with images; give one that holds some")
    return path


def _needs(config: PipelineConfig, runtime: RuntimeConfig) -> Iterator[Need]:
    yield from model_needs(config.model)
    yield from machine_needs(runtime)
    if (folder := config.sampling.safety_checker) is not None:
        found = partial(find_safety_checker, folder)
        yield Need(f"safety checker {folder}", found, source=checker_source(folder))
    if (layouts := config.sampling.sdedit) is not None:
        yield Need(f"layouts {layouts.folder}", partial(image_folder, layouts.folder))


sample_images = Stage("sample", "1", SampleView.of, _fill, inputs=("prompts",), optional=("model",), needs=_needs)
