"""Stage `pairs`: preferences between two pictures, made elsewhere, become what training reads; shards survive a kill.

One artifact stands for three of the pipeline's: `prompts` (the captions), `sample` (latents, embeddings) and
`preferences` (each comparison a pair of sets of one picture). The pictures themselves are not kept.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from storage.store import ArtifactRef, Build, Store
from tasks.stage import Progress, Request, counted, find_published, no_progress, produce, set_threads
from tasks.tables import NO_SEED, drops_table

if TYPE_CHECKING:
    from torch import Tensor

    from storage.pairs import PairFile, PairRow

STAGE = "pairs"
VERSION = "1"

_DROPPED = "dropped: "
"""Begins the name of what a shard counted as dropped; the reason follows."""


def request(config: PipelineConfig, files: "Sequence[PairFile]") -> Request:
    """What the key depends on: the files' bytes, wherever they lie and in whatever order, and what encodes them."""
    return Request(STAGE, VERSION, {"files": [file.sha256 for file in files]} | encoding(config), {})


def encoding(config: PipelineConfig) -> dict[str, Any]:
    """What of the configuration decides the latents and the embeddings: the base model and the size in px; and what it
    is trained with on them besides: the guidance scale, where the model is told it.
    """
    from popalign_core.sampling.models import model_hash, reads_guidance

    size: dict[str, Any] = {"width": config.sampling.width, "height": config.sampling.height}
    if reads_guidance(config.model):
        size["guidance_scale"] = config.sampling.guidance_scale
    return {"sampling": size, "model": {"dtype": config.model.dtype, "hash": model_hash(config.model)}}


def import_pairs(
    files: Sequence[str | Path],
    *,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish tables `prompts`, `images`, `preferences`, `retained` (empty) and `drops`, `latents-*.safetensors` and
    `embeddings.safetensors`.

    All pictures are brought to the configured size, so training conditions SDXL on that size and an uncropped picture
    (`time_ids`), just as the sampler will: nothing of the pictures' own sizes is kept.

    Args:
        files: Parquet files as `storage.pairs` describes them.
        config: Of the pipeline; its base model and its sampling size encode.
        runtime: Store, device, batch size, shard size.
        on_progress: Told how many comparisons are done.

    Raises:
        InputError: When a file is no Parquet file of pairs, or no comparison in them can be used.
        MissingWeightsError: When the model's weights are absent.
    """
    from storage.pairs import open_pairs

    opened = open_pairs(files)

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        _fill(build, ref, opened, config, runtime, on_progress)

    return produce(request(config, opened), runtime, fill)


def find_pairs(store: Store, key: str, config: PipelineConfig) -> ArtifactRef:
    """The published pairs of a key, if the configuration can train on them.

    Raises:
        InputError: When there is no such artifact, or another model or size encoded it.
    """
    ref = find_published(store, STAGE, key, what="pairs", made_by="popalign import pairs FILE...")
    made, asked = store.manifest(ref).payload["config"], encoding(config)
    for part, what in (("model", "base model"), ("sampling", "picture size or guidance scale")):
        if made[part] != asked[part]:
            raise InputError(
                f"{ref.key} was imported for the {what} {made[part]}, this configuration has {asked[part]}; "
                "give the --preset, --config and --set of the import, or import again with these"
            )
    return ref


def _fill(
    build: Build,
    ref: ArtifactRef,
    files: "Sequence[PairFile]",
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    from popalign_core.sampling.models import load_pipeline, resolve_device

    set_threads(runtime)
    pipeline = load_pipeline(config.model, device=resolve_device(runtime.device))
    _encode_shards(build, ref, files, pipeline.vae, config, runtime, on_progress)
    counts = build.sum_counts().items()
    drops = drops_table(STAGE, {name.removeprefix(_DROPPED): n for name, n in counts if name.startswith(_DROPPED)})
    n_rows = sum(file.n_rows for file in files)
    if int(drops["n"].sum()) == n_rows:
        reasons = dict(zip(drops["reason"], drops["n"].tolist(), strict=True))
        raise InputError(
            f"none of the {n_rows} comparison(s) can be used: {reasons}; a preference needs label_0 0 or 1"
        )
    prompts = _prompts(files, set(build.read_table("preferences")["prompt_id"]))
    build.write_table("prompts", prompts)
    build.write_table("retained", pd.DataFrame(columns=["image_id", "prompt_id", "kind"]))
    build.write_table("drops", drops)
    _write_embeddings(build, pipeline, prompts, runtime.batch_size)


def _encode_shards(
    build: Build,
    ref: ArtifactRef,
    files: "Sequence[PairFile]",
    vae: Any,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    from storage.pairs import iter_chunks

    size, n_rows = max(1, runtime.shard_size // 2), sum(file.n_rows for file in files)
    build.use_shard_size(size)
    lengths = [min(size, n_rows - start) for start in range(0, n_rows, size)]
    todo = {number for number in range(len(lengths)) if not build.shard_done(number)}
    done = sum(length for number, length in enumerate(lengths) if number not in todo)
    on_progress(done, n_rows)
    for number, rows in iter_chunks(files, size, todo):
        kept, latents, drops = _encode(counted(rows, on_progress, done, n_rows), vae, config, runtime.batch_size)
        _write_shard(build, ref, number, kept, latents, drops, config)
        done += lengths[number]


def _encode(
    rows: "Iterable[PairRow]", vae: Any, config: PipelineConfig, batch_size: int
) -> "tuple[list[PairRow], list[Tensor], Counter[str]]":
    """The rows that can be used, their pictures' latents batch by batch (picture 0 and 1 of each row in turn), and
    how many rows were dropped for what.
    """
    from popalign_core.pictures import UNDECODABLE
    from popalign_core.preferences.pairs import pair_fault
    from popalign_core.sampling.vae import encode_pixels

    kept: list[PairRow] = []
    latents: list[Tensor] = []
    drops: Counter[str] = Counter()
    batch: list[NDArray[np.uint8]] = []
    for row in rows:
        fault = pair_fault(row.caption, row.label, row.pictures)
        pictures = [] if fault else _fitted(row, config)
        if len(pictures) < 2:
            drops[fault or UNDECODABLE] += 1
            continue
        kept.append(replace(row, pictures=(None, None)))  # the bytes are done with
        batch += pictures
        if len(batch) >= batch_size:
            latents.append(encode_pixels(vae, np.stack(batch)))
            batch = []
    if batch:
        latents.append(encode_pixels(vae, np.stack(batch)))
    return kept, latents, drops


def _fitted(row: "PairRow", config: PipelineConfig) -> list[NDArray[np.uint8]]:
    """Both pictures in the configured size; fewer where one cannot be decoded."""
    from popalign_core.pictures import fit_picture

    width, height = config.sampling.width, config.sampling.height
    fitted = (fit_picture(data, width, height) for data in row.pictures if data)
    return [picture for picture in fitted if picture is not None]


def _write_shard(
    build: Build,
    ref: ArtifactRef,
    number: int,
    rows: "Sequence[PairRow]",
    latents: "Sequence[Tensor]",
    drops: Counter[str],
    config: PipelineConfig,
) -> None:
    import torch

    from tasks.tensors import write_tensors

    name = f"latents-{number:05d}.safetensors"
    if latents:
        write_tensors(build.folder / name, {"latents": torch.cat(list(latents))})
    images, members = _records(ref, rows)
    size = {"width": config.sampling.width, "height": config.sampling.height}
    places = {"image": None, "latents_file": name, "latents_row": range(len(images))}
    build.write_table("images", images.assign(**size, **places), shard=number)
    build.write_table("preferences", members, shard=number)
    counts = {"images": len(images), "pairs": len(rows)} | {_DROPPED + reason: n for reason, n in drops.items()}
    build.mark_shard(number, counts)


def _records(ref: ArtifactRef, rows: "Sequence[PairRow]") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table `images` without size and latents, and table `preferences`; two lines a row, picture 0 first.

    The key stands for the files' content and the row's number for its place in that: ids of content.
    """
    from popalign_core.preferences.pairs import PREFERRED_SIDE

    images, members = [], []
    for row in rows:
        assert row.caption is not None  # pair_fault
        assert row.label is not None
        prompt_id, preferred = _prompt_id(row.caption), PREFERRED_SIDE[row.label]
        for side in (0, 1):
            image_id = content_id("image", ref.key, row.number, side)
            index = 2 * row.number + side
            images.append({"image_id": image_id, "prompt_id": prompt_id, "index": index, "seed": NO_SEED})
            role = "preferred" if side == preferred else "dispreferred"
            pair = {"set_id": content_id("set-pair", ref.key, row.number), "prompt_id": prompt_id, "role": role}
            members.append(pair | {"image_id": image_id, "slot": 0})
    ids = ["image_id", "prompt_id", "index", "seed"]
    sets = pd.DataFrame(members, columns=["set_id", "prompt_id", "role", "image_id", "slot"])
    # one picture aims at no distribution
    target = pd.Series([{} for _ in members], index=sets.index, dtype=object)
    return pd.DataFrame(images, columns=ids), sets.assign(target=target, discrepancy=0.0, balance=0.0)


def _prompt_id(caption: str) -> str:
    return content_id("prompt", caption, "neutral", "train")


def _prompts(files: "Sequence[PairFile]", used: set[str]) -> pd.DataFrame:
    """Table `prompts`: every caption of a preference once, in the order of the files."""
    from storage.pairs import iter_captions

    texts = {_prompt_id(text): text for text in iter_captions(files) if text}
    rows = {"prompt_id": [name for name in texts if name in used]}
    captions = [texts[name] for name in rows["prompt_id"]]
    constant = {"kind": "neutral", "split": "train", "parent_id": None, "template": "{}", "source": STAGE}
    constant["benchmark"] = "neutral"
    identity = pd.Series([{} for _ in captions], dtype=object)
    return pd.DataFrame(rows).assign(text=captions, subject=captions, identity=identity, **constant)


def _write_embeddings(build: Build, pipeline: Any, prompts: pd.DataFrame, batch_size: int) -> None:
    """Embeddings of the captions and, last, of the empty one; once, for one file cannot be done in shards."""
    from popalign_core.sampling.embeddings import embed_prompts
    from tasks.tensors import write_embeddings

    path = build.folder / "embeddings.safetensors"
    if not os.path.exists(path):
        texts = [*prompts["text"], ""]
        write_embeddings(path, [*prompts["prompt_id"], ""], embed_prompts(pipeline, texts, batch_size))
