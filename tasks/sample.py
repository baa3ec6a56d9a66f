"""Stage `sample`: images and their final latents, in shards that survive a kill.

One request serves the preference data (training prompts) or the evaluation (evaluation prompts), of the configured
model or of a trained one. The seed of an image depends on prompt and index only, so both models draw the same noise.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig, SamplingConfig
from popalign_core.ids import content_id, image_seed
from storage.store import ArtifactRef, Build, Store
from tasks.stage import Progress, Request, no_progress, produce, set_threads

if TYPE_CHECKING:
    from pathlib import Path

    from popalign_core.sampling.engine import PromptEmbeddings

STAGE = "sample"
VERSION = "1"

Purpose = Literal["preferences", "evaluation"]
SPLITS: dict[Purpose, str] = {"preferences": "train", "evaluation": "eval"}


def request(
    config: PipelineConfig, *, prompts: ArtifactRef, model: ArtifactRef | None = None, purpose: Purpose
) -> Request:
    """What the key depends on: the weights' hash, never their path; for a trained model its artifact's key."""
    from popalign_core.sampling.models import model_hash

    weights = {"dtype": config.model.dtype} | ({} if model else {"hash": model_hash(config.model)})
    payload = {
        "purpose": purpose,
        "n_images": n_images(config, purpose),
        "sampling": sampling_config(config, purpose).model_dump(mode="json"),
        "model": weights,
    }
    return Request(STAGE, VERSION, payload, {"prompts": prompts.key} | ({"model": model.key} if model else {}))


def n_images(config: PipelineConfig, purpose: Purpose) -> dict[str, int]:
    """Images a prompt, by kind of prompt; kinds that are not drawn are absent."""
    if purpose == "preferences":
        drawn = config.preferences
        return {"neutral": drawn.n_neutral, "specific": drawn.n_specific, "generic": drawn.n_retained}
    counts = config.evaluation
    return {"neutral": counts.n_neutral, "specific": counts.n_specific, "generic": counts.n_generic}


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
        images = list_images(table, n_images(config, purpose), ref.key, sampling_config(config, purpose))
        folder = store.localize(model, "model") if model else None
        _draw_shards(build, table, images, folder, purpose, config, runtime, on_progress)

    return produce(request(config, prompts=prompts, model=model, purpose=purpose), runtime, fill)


def list_images(
    prompts: pd.DataFrame, counts: Mapping[str, int], sample_key: str, config: SamplingConfig
) -> pd.DataFrame:
    """Every image to draw, prompt by prompt: the `images` table before its pictures and latents.

    Args:
        prompts: Prompts of one split.
        counts: Images a prompt, by kind.
        sample_key: Key of the artifact.
        config: Seed and size.

    Raises:
        InputError: When nothing is to be drawn.
    """
    from popalign_core.errors import InputError

    rows = [
        {
            "image_id": content_id("image", sample_key, prompt.prompt_id, index),
            "prompt_id": prompt.prompt_id,
            "index": index,
            "seed": image_seed(config.seed, str(prompt.prompt_id), index),
        }
        for prompt in prompts.itertuples()
        for index in range(counts.get(str(prompt.kind), 0))
    ]
    if not rows:
        raise InputError(
            f"no image to draw: 0 of {len(prompts)} prompts are of the kinds {sorted(counts)}; add prompts"
        )
    return pd.DataFrame(rows).assign(width=config.width, height=config.height)


def _draw_shards(
    build: Build,
    prompts: pd.DataFrame,
    images: pd.DataFrame,
    folder: "Path | None",
    purpose: Purpose,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    size = runtime.shard_size
    build.use_shard_size(size)
    shards = [images.iloc[start : start + size] for start in range(0, len(images), size)]
    todo = [number for number in range(len(shards)) if not build.shard_done(number)]
    done = len(images) - sum(len(shards[number]) for number in todo)
    on_progress(done, len(images))
    if not todo:
        return
    from popalign_core.sampling.models import load_pipeline, resolve_device

    set_threads(runtime)
    pipeline = load_pipeline(config.model, device=resolve_device(runtime.device), folder=folder)
    embeddings = _embeddings(build, pipeline, prompts, runtime.batch_size)
    rows = {prompt_id: row for row, prompt_id in enumerate(prompts["prompt_id"])}
    for number in todo:
        shard, before = shards[number], done

        def count(n: int, before: int = before) -> None:
            on_progress(before + n, len(images))

        index = [rows[prompt_id] for prompt_id in shard["prompt_id"]]
        pixels, latents = _draw(
            pipeline,
            embeddings,
            index,
            shard["seed"].tolist(),
            sampling_config(config, purpose),
            runtime.batch_size,
            count,
        )
        _write_shard(build, number, shard, pixels, latents)
        done += len(shard)


def _draw(
    pipeline: Any,
    embeddings: "PromptEmbeddings",
    index: list[int],
    seeds: list[int],
    config: SamplingConfig,
    batch_size: int,
    count: Any,
) -> tuple[Any, Any]:
    """Pixels [N, H, W, 3] uint8 and latents [N, C, h, w] float32 of one shard, batch by batch."""
    import torch

    from popalign_core.sampling import engine

    # The empty caption is the last row.
    unconditional = engine.PromptEmbeddings(embeddings.prompt_embeds[-1:], embeddings.pooled_prompt_embeds[-1:])
    pixels, latents = [], []
    for start in range(0, len(index), batch_size):
        part = slice(start, start + batch_size)
        drawn, final = engine.sample_images(pipeline, embeddings, unconditional, index[part], seeds[part], config)
        pixels.append(drawn)
        latents.append(final)
        count(start + len(drawn))
    return np.concatenate(pixels), torch.cat(latents)


def _write_shard(build: Build, number: int, shard: pd.DataFrame, pixels: Any, latents: Any) -> None:
    from storage.images import encode_png, image_column
    from tasks.tensors import write_tensors

    name = f"latents-{number:05d}.safetensors"
    write_tensors(build.folder / name, {"latents": latents})
    frame = shard.assign(
        image=pd.Series(image_column(encode_png(picture) for picture in pixels), index=shard.index),
        latents_file=name,
        latents_row=range(len(shard)),
    )
    build.write_table("images", frame, shard=number)
    build.mark_shard(number, {"images": len(shard)})


def _embeddings(build: Build, pipeline: Any, prompts: pd.DataFrame, batch_size: int) -> "PromptEmbeddings":
    """Embeddings of the prompts and, last, of the empty caption; kept, so that a resumed run reads the same ones."""
    from popalign_core.sampling.engine import embed_prompts
    from tasks.tensors import read_embeddings, write_embeddings

    path = build.folder / "embeddings.safetensors"
    ids = [*prompts["prompt_id"], ""]
    if not os.path.exists(path):
        write_embeddings(path, ids, embed_prompts(pipeline, [*prompts["text"], ""], batch_size))
    return read_embeddings(path)[1]
