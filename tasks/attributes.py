"""Stage `attributes`: faces and classes of every image of a person, and why an image is dropped."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from popalign_core.config import AttributesConfig, Axis, PipelineConfig, RuntimeConfig
from popalign_core.prompts.benchmarks import benchmarks_of
from storage.store import ArtifactRef, Build, Store
from tasks import benchmarks
from tasks.measuring import classifier_identity, load_reader
from tasks.sample import UNSAFE
from tasks.shard_worker import load_once
from tasks.shardwise import PictureShard, ShardFiles, look_at_shards
from tasks.stage import Progress, Request, no_progress, open_store, produce
from tasks.tables import drops_table

if TYPE_CHECKING:
    from popalign_core.attributes.reader import AttributeReader, FaceReading

STAGE = "attributes"
VERSION = "1"

_ALWAYS_HASHED = {"classifier", "detector_backend", "min_face_score", "min_face_share", "min_probability"}
"""Settings of the first day; later ones enter the key where they are set, so that old keys stay."""
_AGREED, _DISAGREED = "agreed:", "disagreed:"


def request(config: PipelineConfig, *, prompts: ArtifactRef, sample: ArtifactRef) -> Request:
    """What the key depends on: the classifier by its weights, the axes by name and classes."""
    axes = _axes(config, prompts)
    payload = {
        "attributes": _hashed_settings(config.attributes),
        "classifier": classifier_identity(config.attributes),
        "axes": [axis.model_dump(mode="json", include={"name", "classes", "of"}) for axis in axes],
    }
    return Request(STAGE, VERSION, payload, {"prompts": prompts.key, "sample": sample.key})


def _axes(config: PipelineConfig, prompts: ArtifactRef) -> tuple[Axis, ...]:
    """Only benchmarks with names of their own have axes that are only measured."""
    return config.axes if prompts.stage == benchmarks.STAGE else config.identity_axes


def _hashed_settings(settings: AttributesConfig) -> dict[str, Any]:
    later = settings.model_dump(mode="json", exclude_defaults=True, exclude={"classifiers"})
    return settings.model_dump(mode="json", include=_ALWAYS_HASHED) | later


def read_attributes(
    prompts: ArtifactRef,
    sample: ArtifactRef,
    *,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish tables `attributes` (one row an image and axis measured on its benchmark) and `drops` (images by reason).

    Images of generic prompts are left out: nobody is expected in them. Where several classifiers vote, table
    `agreement` says how often they do.

    Raises:
        InputError: When the classifier lacks a class that an axis has.
        MissingWeightsError: When the classifier's weights are absent.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        look_at_shards(build, read_shard, prompts, sample, config, runtime, on_progress)
        build.write_table("drops", count_drops(build.read_table("attributes")))
        if len(config.attributes.names) > 1:
            axes = [axis.name for axis in _axes(config, prompts)]
            build.write_table("agreement", _agreement(build.sum_counts(), axes))

    return produce(request(config, prompts=prompts, sample=sample), runtime, fill)


def count_drops(attributes: pd.DataFrame) -> pd.DataFrame:
    """Distinct images by drop reason: table `drops`."""
    dropped = attributes.dropna(subset=["drop_reason"])
    return drops_table(STAGE, dropped.groupby("drop_reason")["image_id"].nunique().to_dict())


def read_shard(shard: PictureShard, /, on_images: Callable[[int], None] = lambda n: None) -> ShardFiles:
    """Read the attributes of a shard's images, with the reader of the worker that this is called in."""
    from popalign_core.attributes.filtering import judge, unread
    from storage.parquet import encode, file_name

    settings, axes = shard.config.attributes, _axes(shard.config, shard.prompts)
    reader, measured = load_once(_load, shard.prompts, shard.config, runtime=shard.runtime)
    images, name = shard.read(), f"{reader.name}@{reader.version}"
    chosen = images[images["prompt_id"].isin(list(measured))]
    seen = chosen["image"].notna()
    readings = _read_images(reader, chosen[seen], shard.runtime.batch_size, on_images)
    table = judge(readings, chosen.loc[seen, "image_id"].tolist(), axes, settings, name)
    withheld = unread(chosen.loc[~seen, "image_id"].tolist(), axes, name, UNSAFE)
    table = _measured(pd.concat([table, withheld], ignore_index=True), chosen, measured)
    files = {file_name("attributes", shard.number): encode("attributes", table)}
    return ShardFiles(files, {"images": len(chosen)} | _count_votes(readings))


def _load(
    prompts: ArtifactRef, config: PipelineConfig, runtime: RuntimeConfig, device: str
) -> "tuple[AttributeReader, dict[str, frozenset[str]]]":
    """Who reads, and the axes that are measured on the images of each prompt; generic ones are not among them."""
    from popalign_core.attributes.filtering import check_reader
    from popalign_core.sampling.models import resolve_device

    axes = _axes(config, prompts)
    reader = load_reader(config.attributes, str(resolve_device(device)), axes)
    check_reader(reader, axes)
    table = open_store(runtime).read_table(prompts, "prompts")
    people = table[table["kind"] != "generic"]
    return reader, {
        prompt_id: frozenset(axis.name for axis in config.measured_axes(benchmark))
        for prompt_id, benchmark in zip(people["prompt_id"], benchmarks_of(people), strict=True)
    }


def _measured(attributes: pd.DataFrame, images: pd.DataFrame, measured: Mapping[str, Set[str]]) -> pd.DataFrame:
    """The rows of the axes that are measured on each image's benchmark."""
    axes = dict(zip(images["image_id"], images["prompt_id"].map(measured), strict=True))
    keep = [axis in axes[image_id] for image_id, axis in zip(attributes["image_id"], attributes["axis"], strict=True)]
    return attributes[np.array(keep, dtype=bool)].reset_index(drop=True)


def _read_images(
    reader: "AttributeReader", images: pd.DataFrame, batch_size: int, on_images: Callable[[int], None]
) -> "list[FaceReading]":
    """One reading an image; those that cannot be decoded say so and never reach the reader."""
    from popalign_core.attributes.reader import unreadable
    from popalign_core.pictures import UNDECODABLE, read_picture

    readings = []
    for start in range(0, len(images), batch_size):
        rows = images.iloc[start : start + batch_size]
        decoded = [read_picture(cell["bytes"]) for cell in rows["image"]]
        usable = [pixels is not None for pixels, _ in decoded]
        pictures = [pixels for pixels, _ in decoded if pixels is not None]
        found = iter(reader.read(pictures, rows.loc[usable, "image_id"].tolist()))
        readings += [
            next(found) if is_usable else unreadable(reason or UNDECODABLE)
            for is_usable, (_, reason) in zip(usable, decoded, strict=True)
        ]
        on_images(len(readings))
    return readings


def _count_votes(readings: "Sequence[FaceReading]") -> dict[str, int]:
    """How often classifiers agreed on each axis; nothing where one reads alone."""
    from popalign_core.attributes.voting import votes

    counts: dict[str, int] = {}
    for reading in readings:
        for axis, agreed in votes(reading).items():
            key = f"{_AGREED if agreed else _DISAGREED}{axis}"
            counts[key] = counts.get(key, 0) + 1
    return counts


def _agreement(counts: Mapping[str, int], axes: Sequence[str]) -> pd.DataFrame:
    numbers = {
        column: np.array([counts.get(f"{prefix}{axis}", 0) for axis in axes], dtype=np.int64)
        for column, prefix in (("n_agreed", _AGREED), ("n_disagreed", _DISAGREED))
    }
    return pd.DataFrame({"axis": pd.Series(axes, dtype=object)} | numbers)
