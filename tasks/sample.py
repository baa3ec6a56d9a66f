"""Stage `sample`: images and their final latents, in shards that survive a kill.

One request serves the preference data (training prompts) or the evaluation (evaluation prompts), of the configured
model or of a trained one. The seed of an image depends on prompt and index only, so both models draw the same noise.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig, SamplingConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id, image_seed
from popalign_core.prompts.benchmarks import benchmarks_of
from popalign_core.sampling.captions import plan_captions
from popalign_core.sampling.safety import safety_hash
from popalign_core.sampling.watermark import check_watermark
from storage.store import ArtifactRef, Build, Store
from tasks.measuring import folder_digest
from tasks.shardwise import make_shards
from tasks.stage import Progress, Request, no_progress, produce
from tasks.tables import drops_table

if TYPE_CHECKING:
    from torch import Tensor

    from popalign_core.sampling.captions import CaptionPlan
    from popalign_core.sampling.embeddings import PromptEmbeddings

STAGE = "sample"
VERSION = "1"

UNSAFE = "unsafe"
"""Why an image has no picture: the safety checker flagged it."""

Purpose = Literal["preferences", "evaluation"]
SPLITS: dict[Purpose, str] = {"preferences": "train", "evaluation": "eval"}


def request(
    config: PipelineConfig, *, prompts: ArtifactRef, model: ArtifactRef | None = None, purpose: Purpose
) -> Request:
    """What the key depends on: weights and pictures by their hash, never by their path; a trained model by its key."""
    from popalign_core.sampling.models import model_hash

    weights = {"dtype": config.model.dtype} | ({} if model else {"hash": model_hash(config.model)})
    if config.model.storage is not None:  # absent from the keys of all others
        weights["storage"] = config.model.storage
    payload = {
        "purpose": purpose,
        "n_images": n_images(config, purpose),
        "sampling": _hashed_sampling(config, purpose),
        "model": weights,
    }
    return Request(STAGE, VERSION, payload, {"prompts": prompts.key} | ({"model": model.key} if model else {}))


def _hashed_sampling(config: PipelineConfig, purpose: Purpose) -> dict[str, Any]:
    """The sampler's settings with the content of folders in place of their paths, and the axes where they matter."""
    sampling = sampling_config(config, purpose)
    hashed = sampling.model_dump(mode="json", exclude={"sdedit": {"folder"}, "safety_checker": True})
    if sampling.sdedit is not None:
        hashed["layouts"] = folder_digest(picture_folder(sampling.sdedit.folder))
    if sampling.safety_checker is not None:
        hashed["safety_checker"] = safety_hash(sampling.safety_checker)
    if sampling.inject_identity or sampling.fair_diffusion is not None:
        hashed["axes"] = [axis.model_dump(mode="json") for axis in config.identity_axes]
    return hashed


def n_images(config: PipelineConfig, purpose: Purpose) -> dict[str, int]:
    """Images a prompt, by benchmark."""
    if purpose == "preferences":
        drawn = config.preferences
        return {"neutral": drawn.n_neutral, "specific": drawn.n_specific, "generic": drawn.n_retained}
    counts = config.evaluation
    by_kind = {"neutral": counts.n_neutral, "specific": counts.n_specific, "generic": counts.n_generic}
    named = config.prompts.benchmarks.items()
    return by_kind | {name: benchmark.n_images or by_kind[benchmark.kind] for name, benchmark in named}


def sampling_config(config: PipelineConfig, purpose: Purpose) -> SamplingConfig:
    """The sampler's settings; evaluation images have a seed of their own."""
    if purpose == "preferences":
        return config.sampling
    return config.sampling.model_copy(update={"seed": config.evaluation.seed})


def sample_images(
    prompts: ArtifactRef,
    model: ArtifactRef | None = None,
    *,
    purpose: Purpose,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish table `images`, `latents-*.safetensors` and `embeddings.safetensors`.

    Args:
        prompts: Artifact with all prompts.
        model: Artifact of a trained model; None samples the configured one.
        purpose: Which prompts, and how many images each.
        config: Of the pipeline.
        runtime: Store, device, batch size, shard size.
        on_progress: Told how many images are done.

    Raises:
        InputError: When no prompt is of the purpose's split.
        MissingWeightsError: When the model's weights are absent.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        table = store.read_table(prompts, "prompts")
        table = table[table["split"] == SPLITS[purpose]].reset_index(drop=True)
        sampling = sampling_config(config, purpose)
        if sampling.watermark:
            check_watermark(width=sampling.width, height=sampling.height)
        images = list_images(table, n_images(config, purpose), ref.key, sampling)
        _draw_shards(build, table, images, model, sampling, config, runtime, on_progress)
        build.write_table("drops", drops_table(STAGE, {UNSAFE: build.sum_counts().get(UNSAFE, 0)}))

    return produce(request(config, prompts=prompts, model=model, purpose=purpose), runtime, fill)


def list_images(
    prompts: pd.DataFrame, counts: Mapping[str, int], sample_key: str, config: SamplingConfig
) -> pd.DataFrame:
    """Every image to draw, prompt by prompt: the `images` table before its pictures and latents.

    Args:
        prompts: Prompts of one split.
        counts: Images a prompt, by benchmark.
        sample_key: Key of the artifact.
        config: Seed and size.

    Raises:
        InputError: When nothing is to be drawn.
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
            f"no image to draw: 0 of {len(prompts)} prompts are of the benchmarks {sorted(counts)}; add prompts"
        )
    return pd.DataFrame(rows).assign(width=config.width, height=config.height)


def _draw_shards(
    build: Build,
    prompts: pd.DataFrame,
    images: pd.DataFrame,
    model: ArtifactRef | None,
    sampling: SamplingConfig,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    from tasks.shards import Shards, draw_shard

    size = runtime.shard_size
    build.use_shard_size(size)

    def jobs(todo: Sequence[int]) -> Shards:
        plan = plan_captions(prompts, images, config.identity_axes, sampling)
        ids, embeddings = _embeddings(build, plan, config, runtime)
        layouts = _layout_latents(sampling, config, runtime)
        return Shards(todo, images, plan, ids, embeddings, layouts, sampling, config.model, model, runtime)

    lengths = [len(images.iloc[start : start + size]) for start in range(0, len(images), size)]
    make_shards(build, draw_shard, jobs, lengths, runtime, on_progress)


def _embeddings(
    build: Build, plan: "CaptionPlan", config: PipelineConfig, runtime: RuntimeConfig
) -> "tuple[list[str], PromptEmbeddings]":
    """Ids and embeddings of all captions and, last, of the empty one; kept, so that a resumed run reads the same ones.

    The text encoders are loaded for this alone, and gone when the denoiser comes.
    """
    from popalign_core.sampling.embeddings import TEXT_PARTS, embed_prompts
    from popalign_core.sampling.models import load_pipeline, resolve_device
    from tasks.tensors import read_embeddings, write_embeddings

    path = build.folder / "embeddings.safetensors"
    if not os.path.exists(path):
        pipeline = load_pipeline(config.model, device=resolve_device(runtime.device), components=TEXT_PARTS)
        embeddings = embed_prompts(pipeline, [*plan.texts.values(), ""], runtime.batch_size)
        write_embeddings(path, [*plan.texts, ""], embeddings)
    return read_embeddings(path)


def _layout_latents(sampling: SamplingConfig, config: PipelineConfig, runtime: RuntimeConfig) -> "Tensor | None":
    """Latents [L, C, h, w] of the pictures that SDEdit starts from, in the order of their names; None without."""
    if sampling.sdedit is None:
        return None
    from popalign_core.pictures import fit_picture
    from popalign_core.sampling.models import load_pipeline, resolve_device
    from popalign_core.sampling.vae import encode_pixels

    pictures = []
    for path in sorted(path for path in picture_folder(sampling.sdedit.folder).iterdir() if path.is_file()):
        pixels = fit_picture(path.read_bytes(), sampling.width, sampling.height)
        if pixels is None:
            raise InputError(f"{path} is no picture; sampling.sdedit.folder must hold pictures alone")
        pictures.append(pixels)
    pipeline = load_pipeline(config.model, device=resolve_device(runtime.device), components=("vae",))
    return encode_pixels(pipeline.vae, np.stack(pictures))


def picture_folder(folder: str) -> Path:
    """A folder with files in it.

    Raises:
        InputError: When there is none.
    """
    path = Path(folder)
    if not path.is_dir() or not any(each.is_file() for each in path.iterdir()):
        raise InputError(f"sampling.sdedit.folder {folder!r} is no folder with pictures; give one that holds some")
    return path
