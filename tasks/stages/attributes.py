"""Stage `attributes`: faces and classes of every image of a person, and why an image is dropped."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from popalign_core.config import AttributesConfig, Axis, PipelineConfig, RuntimeConfig
from popalign_core.prompts.benchmarks import benchmarks_of
from popalign_core.sampling.safety import UNSAFE
from storage.store import ArtifactRef, Build
from tasks.common.image_tables import drops_table
from tasks.common.measuring import classifier_identity, load_attribute_classifier
from tasks.common.needs import Need, classifier_needs, machine_needs
from tasks.common.stage_object import Inputs, Progress, Stage, View, keep_fields, open_store
from tasks.stages import benchmarks
from tasks.workers.shard_worker import load_once
from tasks.workers.shardwise import ImageShard, ShardFiles, look_at_shards

if TYPE_CHECKING:
    from popalign_core.attributes.classifier_interface import AttributeClassifier, FaceReading

_ALWAYS_HASHED = {"classifier", "detector_backend", "min_face_score", "min_face_share", "min_probability"}
"""Settings of the first day; later ones enter the key where they are set, so that old keys stay."""
_AGREED, _DISAGREED = "agreed:", "disagreed:"


class AttributesView(View):
    """Who reads, the axes by name and classes, and which are measured where.

    Attributes:
        attributes: Settings; of further classifiers only those that read.
        axes: Without words and targets.
        measured: Benchmark -> names of the axes measured on it.
        batch_size: Images a batch where the configuration says so; None leaves it to the runtime.
    """

    attributes: AttributesConfig
    axes: tuple[Axis, ...]
    measured: dict[str, tuple[str, ...]]
    batch_size: int | None = None

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, is_round: bool | None = None) -> Self:
        """Only benchmarks with names of their own have axes that are only measured; what a round samples is read in
        batches of the configuration's size.
        """
        axes = config.axes if inputs["prompts"].stage == benchmarks.add_benchmarks.name else config.identity_axes
        names = ("neutral", "specific", *config.prompts.benchmarks)
        return cls(
            attributes=classifiers_in_use(config.attributes),
            axes=tuple(keep_fields(axis, "name", "classes", "of") for axis in axes),
            measured={name: tuple(axis.name for axis in config.measured_axes(name)) for name in names},
            batch_size=config.training.population.round_batch if is_round else None,
        )

    def hashed(self) -> dict[str, Any]:
        """The classifier by its weights."""
        axes = [axis.model_dump(mode="json", include={"name", "classes", "of"}) for axis in self.axes]
        batches = {} if self.batch_size is None else {"batch_size": self.batch_size}
        return hashed_classifier(self.attributes) | {"axes": axes} | batches

    def unhashed(self) -> dict[str, str]:
        """Which benchmark measures what."""
        return {"measured": "in the key of the prompts"}


def classifiers_in_use(settings: AttributesConfig) -> AttributesConfig:
    """Without further classifiers that do not read."""
    read = {name: each for name, each in settings.classifiers.items() if name in settings.names}
    return settings.model_copy(update={"classifiers": read})


def hashed_classifier(settings: AttributesConfig) -> dict[str, Any]:
    """What the key holds: the classifiers, and when an image is dropped."""
    later = settings.model_dump(mode="json", exclude_defaults=True, exclude={"classifiers"})
    hashed = settings.model_dump(mode="json", include=_ALWAYS_HASHED) | later
    return {"attributes": hashed, "classifier": classifier_identity(settings)}


def _fill(view: AttributesView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write tables `attributes` (one row an image and axis measured on its benchmark) and `drops` (images by reason).

    Images of generic prompts are left out: they show no people. Where several classifiers vote, table
    `agreement` says how often they do.

    Raises:
        InputError: When the classifier lacks a class that an axis has.
        MissingWeightsError: When the classifier's weights are absent.
    """
    look_at_shards(build, read_shard, inputs, view, runtime, on_progress)
    build.write_table("drops", tabulate_image_drops(build.read_table("attributes")))
    if len(view.attributes.names) > 1:
        build.write_table("agreement", _agreement(build.sum_counts(), [axis.name for axis in view.axes]))


def tabulate_image_drops(attributes: pd.DataFrame) -> pd.DataFrame:
    """Distinct images by drop reason: table `drops`."""
    dropped = attributes.dropna(subset=["drop_reason"])
    return drops_table(read_attributes.name, dropped.groupby("drop_reason")["image_id"].nunique().to_dict())


def read_shard(shard: ImageShard[AttributesView], /, on_images: Callable[[int], None] = lambda n: None) -> ShardFiles:
    """Read the attributes of a shard's images, with the classifier of the worker that this is called in."""
    from popalign_core.attributes.filtering import filter_readings, unread
    from storage.formats.parquet import encode, file_name

    settings, axes = shard.view.attributes, shard.view.axes
    classifier, measured = load_once(_load, shard.prompts, shard.view, runtime=shard.runtime)
    images, name = shard.read(), f"{classifier.name}@{classifier.version}"
    chosen = images[images["prompt_id"].isin(list(measured))]
    seen = chosen["image"].notna()
    batch_size = shard.view.batch_size or shard.runtime.batch_size
    readings = _read_images(classifier, chosen[seen], batch_size, on_images)
    table = filter_readings(readings, chosen.loc[seen, "image_id"].tolist(), axes, settings, name)
    withheld = unread(chosen.loc[~seen, "image_id"].tolist(), axes, name, UNSAFE)
    table = _measured(pd.concat([table, withheld], ignore_index=True), chosen, measured)
    files = {file_name("attributes", shard.number): encode("attributes", table)}
    return ShardFiles(files, {"images": len(chosen)} | _count_votes(readings))


def _load(
    prompts: ArtifactRef, view: AttributesView, runtime: RuntimeConfig, device: str
) -> "tuple[AttributeClassifier, dict[str, frozenset[str]]]":
    """Who reads, and the axes that are measured on the images of each prompt; generic ones are not among them."""
    from popalign_core.attributes.filtering import check_classifier
    from popalign_core.models.loading import resolve_device

    classifier = load_attribute_classifier(view.attributes, str(resolve_device(device)), view.axes)
    check_classifier(classifier, view.axes)
    table = open_store(runtime).read_table(prompts, "prompts")
    people = table[table["kind"] != "generic"]
    return classifier, {
        prompt_id: frozenset(view.measured[benchmark])
        for prompt_id, benchmark in zip(people["prompt_id"], benchmarks_of(people), strict=True)
    }


def _measured(attributes: pd.DataFrame, images: pd.DataFrame, measured: Mapping[str, Set[str]]) -> pd.DataFrame:
    """The rows of the axes that are measured on each image's benchmark."""
    axes = dict(zip(images["image_id"], images["prompt_id"].map(measured), strict=True))
    keep = [axis in axes[image_id] for image_id, axis in zip(attributes["image_id"], attributes["axis"], strict=True)]
    return attributes[np.array(keep, dtype=bool)].reset_index(drop=True)


def _read_images(
    classifier: "AttributeClassifier", images: pd.DataFrame, batch_size: int, on_images: Callable[[int], None]
) -> "list[FaceReading]":
    """One reading an image; those that cannot be decoded say so and never reach the classifier."""
    from popalign_core.attributes.classifier_interface import unreadable
    from popalign_core.models.pixels import UNDECODABLE, decode_image

    readings = []
    for start in range(0, len(images), batch_size):
        rows = images.iloc[start : start + batch_size]
        decoded = [decode_image(cell["bytes"]) for cell in rows["image"]]
        usable = [pixels is not None for pixels, _ in decoded]
        readable = [pixels for pixels, _ in decoded if pixels is not None]
        found = iter(classifier.read(readable, rows.loc[usable, "image_id"].tolist()))
        readings += [
            next(found) if is_usable else unreadable(reason or UNDECODABLE)
            for is_usable, (_, reason) in zip(usable, decoded, strict=True)
        ]
        on_images(len(readings))
    return readings


def _count_votes(readings: "Sequence[FaceReading]") -> dict[str, int]:
    """How often classifiers agreed on each axis; nothing where one reads alone."""
    from popalign_core.attributes.voting import agree_by_vote

    counts: dict[str, int] = {}
    for reading in readings:
        for axis, agreed in agree_by_vote(reading).items():
            key = f"{_AGREED if agreed else _DISAGREED}{axis}"
            counts[key] = counts.get(key, 0) + 1
    return counts


def _agreement(counts: Mapping[str, int], axes: Sequence[str]) -> pd.DataFrame:
    numbers = {
        column: np.array([counts.get(f"{prefix}{axis}", 0) for axis in axes], dtype=np.int64)
        for column, prefix in (("n_agreed", _AGREED), ("n_disagreed", _DISAGREED))
    }
    return pd.DataFrame({"axis": pd.Series(axes, dtype=object)} | numbers)


def _needs(config: PipelineConfig, runtime: RuntimeConfig) -> Iterator[Need]:
    yield from classifier_needs(config.attributes, config.axes)
    yield from machine_needs(runtime)


read_attributes = Stage("attributes", "1", AttributesView.of, _fill, inputs=("prompts", "sample"), needs=_needs)
