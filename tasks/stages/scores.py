"""Stage `scores`: how good each image is, how well it fits its prompt, and the features that compare sets of them."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import EvaluationConfig, PipelineConfig, RuntimeConfig
from popalign_core.config.evaluation import DIVERSITY, SUBJECT_ACCURACY
from popalign_core.evaluation.score_units import COSINE_DISTANCE, SHARE
from popalign_core.prompts.benchmarks import benchmarks_of
from storage.store import ArtifactRef, Build, Store
from tasks.common import measuring
from tasks.common.image_tables import iter_batches
from tasks.common.needs import Need, machine_needs, scorer_needs
from tasks.common.stage_object import Inputs, Progress, Stage, View, keep_fields, open_store
from tasks.stages.feature_files import pack_features, read_build
from tasks.workers.shard_worker import load_once
from tasks.workers.shardwise import ImageShard, ShardFiles, look_at_shards

if TYPE_CHECKING:
    from torch import Tensor

    from popalign_core.evaluation.quality.scorer_factory import Judges

COLUMNS = ["image_id", "scorer", "version", "unit", "value"]


class ScoresView(View):
    """Who scores."""

    evaluation: EvaluationConfig

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef]) -> Self:
        """Of the evaluation the scorers alone."""
        return cls(evaluation=keep_fields(config.evaluation, "scorers"))

    def hashed(self) -> dict[str, Any]:
        """Scorers by the content of their files."""
        return measuring.scorer_identities(self.evaluation)


def _fill(view: ScoresView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write table `scores`, one row an image and scorer, and the features that `tasks.stages.feature_files` reads.

    Images of generic prompts are also asked for their subject. `diversity` is how far an image is from the others of
    its prompt. What cannot be measured, as its weights are not there, stands in table `unmeasured` with the reason.

    Raises:
        ConfigError: When a scorer's package is absent.
        InputError: When weights are not what they should be, or a score is not finite.
    """
    n_shards = look_at_shards(build, score_shard, inputs, view, runtime, on_progress)
    build.write_table("scores", _diversity(build, inputs), shard=n_shards)


def score_shard(shard: ImageShard[ScoresView], /, on_images: Callable[[int], None] = lambda n: None) -> ShardFiles:
    """Score a shard's images, with the judges of the worker that this is called in.

    What cannot be measured is the same in every shard, and a table in one file.
    """
    from storage.formats.parquet import encode, file_name

    judges, prompts = load_once(_load, shard.prompts, shard.view, runtime=shard.runtime)
    images = shard.read()
    scores, features = _score(judges, prompts, images[images["image"].notna()], shard, on_images)
    reasons = pd.DataFrame({"metric": judges.unmeasured.keys(), "reason": judges.unmeasured.values()}, dtype=object)
    tables = {
        file_name("scores", shard.number): encode("scores", scores),
        file_name("unmeasured", None): encode("unmeasured", reasons),
    }
    return ShardFiles(tables | features, {"images": len(images)})


def _load(prompts: ArtifactRef, view: ScoresView, runtime: RuntimeConfig, device: str) -> "tuple[Judges, pd.DataFrame]":
    """Who scores, and table `prompts` by prompt."""
    from popalign_core.models.loading import resolve_device

    judges = measuring.load_judges(view.evaluation, str(resolve_device(device)))
    return judges, open_store(runtime).read_table(prompts, "prompts").set_index("prompt_id")


def _score(
    judges: "Judges",
    prompts: pd.DataFrame,
    shown: pd.DataFrame,
    shard: ImageShard[ScoresView],
    on_images: Callable[[int], None],
) -> tuple[pd.DataFrame, dict[str, bytes]]:
    """Table `scores` of a shard's images, and the file of their features."""
    features: dict[str, list[Tensor]] = {extractor.name: [] for extractor in judges.extractors}
    parts = [pd.DataFrame(columns=COLUMNS).astype({"value": float})]
    things = prompts[benchmarks_of(prompts) == "generic"]  # named benchmarks hold sentences, which are no subjects
    generic = dict(zip(things.index.astype(str), things["text"], strict=True))
    done = 0
    for rows, pixels in iter_batches(shown, shard.runtime.batch_size):
        images, texts = list(pixels), prompts.loc[rows["prompt_id"], "text"].tolist()
        for scorer in judges.scorers:
            parts.append(_rows(rows, scorer.name, scorer.version, scorer.unit, scorer.score(images, texts)))
        asked = rows["prompt_id"].isin(list(generic)).to_numpy()
        if judges.subjects is not None and asked.any():
            right = _subjects_recognised(judges, images, rows, asked, generic)
            parts.append(_rows(rows[asked], SUBJECT_ACCURACY, judges.subjects_version, SHARE, right))
        for extractor in judges.extractors:
            features[extractor.name].append(extractor.extract(images))
        done += len(images)
        on_images(done)
    table = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    return table, pack_features(shard.number, shown["image_id"].tolist(), features, judges.extractors)


def _subjects_recognised(
    judges: "Judges",
    images: list[NDArray[np.uint8]],
    rows: pd.DataFrame,
    asked: NDArray[np.bool_],
    generic: Mapping[str, str],
) -> NDArray[np.float64]:
    from popalign_core.evaluation.clip_score import subject_accuracy

    assert judges.subjects is not None
    place = {prompt_id: number for number, prompt_id in enumerate(generic)}
    answers = [place[prompt_id] for prompt_id in rows.loc[asked, "prompt_id"]]
    embeds = judges.subjects.embed_images(images)[asked.nonzero()[0]]
    return subject_accuracy(embeds, judges.subjects.embed_texts(list(generic.values())), answers)


def _diversity(build: Build, inputs: Inputs) -> pd.DataFrame:
    """Rows of `diversity`; benchmarks with a lone image of some prompt have none."""
    from popalign_core.evaluation.quality.feature_distances import distances_from_siblings
    from popalign_core.evaluation.quality.features import CLIP

    empty = pd.DataFrame(columns=COLUMNS).astype({"value": float})
    found = read_build(build).get(CLIP)
    if found is None:
        return empty
    columns = ["image_id", "prompt_id"]
    places = inputs.store.read_table(inputs["sample"], "images", columns).set_index("image_id")["prompt_id"]
    prompt_ids = places.loc[list(found.image_ids)]
    values = distances_from_siblings(found.values, prompt_ids.to_numpy(dtype=str))
    benchmarks = benchmarks_of(inputs.read_table("prompts", "prompts").set_index("prompt_id"))
    kinds = benchmarks.loc[prompt_ids].to_numpy(dtype=str)
    lonely = np.unique(kinds[~np.isfinite(values)])
    kept = ~np.isin(kinds, lonely)
    rows = pd.DataFrame({"image_id": np.array(found.image_ids, dtype=object)[kept]})
    return _rows(rows, DIVERSITY, found.version, COSINE_DISTANCE, values[kept]) if len(rows) else empty


def _rows(images: pd.DataFrame, scorer: str, version: str, unit: str, values: NDArray[np.float64]) -> pd.DataFrame:
    columns = {"image_id": images["image_id"].to_numpy(), "scorer": scorer, "version": version, "unit": unit}
    return pd.DataFrame(columns | {"value": values})


def _needs(config: PipelineConfig, runtime: RuntimeConfig) -> Iterator[Need]:
    yield from scorer_needs(config.evaluation)
    yield from machine_needs(runtime)


score_images = Stage("scores", "3", ScoresView.of, _fill, inputs=("prompts", "sample"), needs=_needs)


def read_unmeasured(store: Store, scores: ArtifactRef) -> dict[str, str]:
    """Metric -> why stage `scores` could not measure it."""
    table = store.read_table(scores, "unmeasured")
    return dict(zip(table["metric"], table["reason"], strict=True))
