"""Stage `attributes`: faces and classes of every image of a person, and why an image is dropped."""

from collections.abc import Set
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.measuring import CLASSIFIERS
from tasks.sample import UNSAFE
from tasks.stage import Progress, Request, no_progress, produce, set_threads
from tasks.tables import drops_table, iter_batches

if TYPE_CHECKING:
    pass

STAGE = "attributes"
VERSION = "1"


def request(config: PipelineConfig, *, prompts: ArtifactRef, sample: ArtifactRef) -> Request:
    """What the key depends on: the classifier by its weights, the axes by name and classes."""
    payload = {
        "attributes": config.attributes.model_dump(mode="json"),
        "classifier": CLASSIFIERS[config.attributes.classifier].identity(),
        "axes": [axis.model_dump(mode="json", include={"name", "classes"}) for axis in config.axes],
    }
    return Request(STAGE, VERSION, payload, {"prompts": prompts.key, "sample": sample.key})


def read_attributes(
    prompts: ArtifactRef,
    sample: ArtifactRef,
    *,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish tables `attributes` (one row an image and axis) and `drops` (images by reason).

    Images of generic prompts are left out: nobody is expected in them.

    Raises:
        InputError: When the classifier lacks a class that an axis has.
        MissingWeightsError: When the classifier's weights are absent.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        table = store.read_table(prompts, "prompts")
        people = set(table.loc[table["kind"] != "generic", "prompt_id"])
        _read_shards(store, build, sample, people, config, runtime, on_progress)

    return produce(request(config, prompts=prompts, sample=sample), runtime, fill)


def count_drops(attributes: pd.DataFrame) -> pd.DataFrame:
    """Distinct images by drop reason: table `drops`."""
    dropped = attributes.dropna(subset=["drop_reason"])
    return drops_table(STAGE, dropped.groupby("drop_reason")["image_id"].nunique().to_dict())


def _read_shards(
    store: Store,
    build: Build,
    sample: ArtifactRef,
    people: Set[str],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    from popalign_core.attributes.filtering import check_reader, judge, unread
    from popalign_core.sampling.models import resolve_device

    set_threads(runtime)
    reader = CLASSIFIERS[config.attributes.classifier].load(config.attributes, str(resolve_device(runtime.device)))
    check_reader(reader, config.axes)
    done, total = 0, store.manifest(sample).rows["images"]
    for number, shard in enumerate(store.iter_table(sample, "images")):
        if not build.shard_done(number):
            chosen, name = shard[shard["prompt_id"].isin(people)], f"{reader.name}@{reader.version}"
            seen = chosen["image"].notna()
            readings = [face for _, pixels in iter_batches(chosen, runtime.batch_size) for face in reader.read(pixels)]
            table = judge(readings, chosen.loc[seen, "image_id"].tolist(), config.axes, config.attributes, name)
            withheld = unread(chosen.loc[~seen, "image_id"].tolist(), config.axes, name, UNSAFE)
            build.write_table("attributes", pd.concat([table, withheld], ignore_index=True), shard=number)
            build.mark_shard(number, {"images": len(chosen)})
        done += len(shard)
        on_progress(done, total)
    build.write_table("drops", count_drops(build.read_table("attributes")))
