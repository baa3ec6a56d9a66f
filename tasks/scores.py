"""Stage `scores`: how good each image is, how well it fits its prompt, and the features that compare sets of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.evaluation import DIVERSITY, SUBJECT_ACCURACY
from popalign_core.evaluation.units import COSINE_DISTANCE, SHARE
from popalign_core.prompts.benchmarks import benchmarks_of
from storage.store import ArtifactRef, Build, Store
from tasks import measuring
from tasks.features import read_build, write_features
from tasks.stage import Progress, Request, no_progress, produce, set_threads
from tasks.tables import iter_batches

if TYPE_CHECKING:
    from torch import Tensor

    from popalign_core.evaluation.quality.building import Judges

STAGE = "scores"
VERSION = "2"

COLUMNS = ["image_id", "scorer", "version", "unit", "value"]


def request(config: PipelineConfig, *, prompts: ArtifactRef, sample: ArtifactRef) -> Request:
    """What the key depends on: who scores, by the content of their files, and the images."""
    payload = measuring.scorer_identities(config.evaluation)
    return Request(STAGE, VERSION, payload, {"prompts": prompts.key, "sample": sample.key})


def score_images(
    prompts: ArtifactRef,
    sample: ArtifactRef,
    *,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish table `scores`, one row an image and scorer, and the features that `tasks.features` reads.

    Images of generic prompts are also asked for their subject. `diversity` is how far an image is from the others of
    its prompt. What cannot be measured, as its weights are not there, stands in table `unmeasured` with the reason.

    Raises:
        ConfigError: When a scorer's package is absent.
        InputError: When weights are not what they should be, or a score is not finite.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        table = store.read_table(prompts, "prompts").set_index("prompt_id")
        _score_shards(store, build, sample, table, config, runtime, on_progress)

    return produce(request(config, prompts=prompts, sample=sample), runtime, fill)


def _score_shards(
    store: Store,
    build: Build,
    sample: ArtifactRef,
    prompts: pd.DataFrame,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    from popalign_core.sampling.models import resolve_device

    set_threads(runtime)
    judges = measuring.load_judges(config.evaluation, str(resolve_device(runtime.device)))
    done, total, shards, places = 0, store.manifest(sample).rows["images"], 0, []
    for number, shard in enumerate(store.iter_table(sample, "images")):
        shown = shard[shard["image"].notna()]
        if not build.shard_done(number):
            _write_shard(build, number, judges, shown, prompts, runtime.batch_size)
            build.mark_shard(number, {"images": len(shard)})
        places.append(shown[["image_id", "prompt_id"]])
        done, shards = done + len(shard), number + 1
        on_progress(done, total)
    build.write_table("scores", _diversity(build, judges, pd.concat(places), prompts), shard=shards)
    reasons = {"metric": pd.Series(list(judges.unmeasured), dtype=object)}
    build.write_table("unmeasured", pd.DataFrame(reasons | {"reason": list(judges.unmeasured.values())}).astype(object))


def _write_shard(
    build: Build, number: int, judges: "Judges", shown: pd.DataFrame, prompts: pd.DataFrame, batch_size: int
) -> None:
    features: dict[str, list[Tensor]] = {extractor.name: [] for extractor in judges.extractors}
    parts = [pd.DataFrame(columns=COLUMNS).astype({"value": float})]
    things = prompts[benchmarks_of(prompts) == "generic"]  # named benchmarks hold sentences, which are no subjects
    generic = dict(zip(things.index.astype(str), things["text"], strict=True))
    for rows, pixels in iter_batches(shown, batch_size):
        pictures, texts = list(pixels), prompts.loc[rows["prompt_id"], "text"].tolist()
        for scorer in judges.scorers:
            parts.append(_rows(rows, scorer.name, scorer.version, scorer.unit, scorer.score(pictures, texts)))
        asked = rows["prompt_id"].isin(list(generic)).to_numpy()
        if judges.subjects is not None and asked.any():
            right = _subjects_recognised(judges, pictures, rows, asked, generic)
            parts.append(_rows(rows[asked], SUBJECT_ACCURACY, judges.subjects_version, SHARE, right))
        for extractor in judges.extractors:
            features[extractor.name].append(extractor.extract(pictures))
    build.write_table("scores", pd.concat([part for part in parts if len(part)] or parts, ignore_index=True), number)
    write_features(build, number, shown["image_id"].tolist(), features, judges.extractors)


def _subjects_recognised(
    judges: "Judges",
    pictures: list[NDArray[np.uint8]],
    rows: pd.DataFrame,
    asked: NDArray[np.bool_],
    generic: Mapping[str, str],
) -> NDArray[np.float64]:
    from popalign_core.evaluation.clip_score import subject_accuracy

    assert judges.subjects is not None
    place = {prompt_id: number for number, prompt_id in enumerate(generic)}
    answers = [place[prompt_id] for prompt_id in rows.loc[asked, "prompt_id"]]
    embeds = judges.subjects.embed_pictures(pictures)[asked.nonzero()[0]]
    return subject_accuracy(embeds, judges.subjects.embed_texts(list(generic.values())), answers)


def _diversity(build: Build, judges: "Judges", places: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Rows of `diversity`; benchmarks with a lone picture of some prompt have none."""
    from popalign_core.evaluation.quality.distances import distances_from_siblings
    from popalign_core.evaluation.quality.features import CLIP
    from popalign_core.prompts.benchmarks import benchmarks_of

    empty = pd.DataFrame(columns=COLUMNS).astype({"value": float})
    found = read_build(build).get(CLIP)
    if found is None or judges.subjects is None:
        return empty
    prompt_ids = places.set_index("image_id").loc[list(found.image_ids), "prompt_id"]
    values = distances_from_siblings(found.values, prompt_ids.to_numpy(dtype=str))
    kinds = benchmarks_of(prompts).loc[prompt_ids].to_numpy(dtype=str)
    lonely = np.unique(kinds[~np.isfinite(values)])
    kept = ~np.isin(kinds, lonely)
    rows = pd.DataFrame({"image_id": np.array(found.image_ids, dtype=object)[kept]})
    return _rows(rows, DIVERSITY, found.version, COSINE_DISTANCE, values[kept]) if len(rows) else empty


def _rows(images: pd.DataFrame, scorer: str, version: str, unit: str, values: NDArray[np.float64]) -> pd.DataFrame:
    columns = {"image_id": images["image_id"].to_numpy(), "scorer": scorer, "version": version, "unit": unit}
    return pd.DataFrame(columns | {"value": values})


def read_unmeasured(store: Store, scores: ArtifactRef) -> dict[str, str]:
    """Metric -> why stage `scores` could not measure it."""
    table = store.read_table(scores, "unmeasured")
    return dict(zip(table["metric"], table["reason"], strict=True))
