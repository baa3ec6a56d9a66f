"""Stage `scores`: how well each image fits its prompt, by a CLIP model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks import measuring
from tasks.stage import Progress, Request, no_progress, produce, set_threads
from tasks.tables import iter_batches

if TYPE_CHECKING:
    from popalign_core.evaluation.clip_score import ClipScorer

STAGE = "scores"
VERSION = "1"


def request(config: PipelineConfig, *, prompts: ArtifactRef, sample: ArtifactRef) -> Request:
    """What the key depends on: the CLIP model by its files, and the images."""
    payload = {"clip": measuring.folder_digest(measuring.clip_folder())}
    return Request(STAGE, VERSION, payload, {"prompts": prompts.key, "sample": sample.key})


def score_images(
    prompts: ArtifactRef,
    sample: ArtifactRef,
    *,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish table `scores`: the CLIP score of every image; for generic ones also whether the subject is recognised.

    Raises:
        MissingWeightsError: When the CLIP model is absent.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        table = store.read_table(prompts, "prompts").set_index("prompt_id")
        _score_shards(store, build, sample, table, runtime, on_progress)

    return produce(request(config, prompts=prompts, sample=sample), runtime, fill)


def _score_shards(
    store: Store,
    build: Build,
    sample: ArtifactRef,
    prompts: pd.DataFrame,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    from popalign_core.evaluation.clip_score import load_clip
    from popalign_core.sampling.models import resolve_device

    set_threads(runtime)
    scorer = load_clip(measuring.clip_folder(), resolve_device(runtime.device))
    things = prompts[prompts["kind"] == "generic"]
    generic = dict(zip(things.index.astype(str), things["text"], strict=True))
    done, total = 0, store.manifest(sample).rows["images"]
    for number, shard in enumerate(store.iter_table(sample, "images")):
        if not build.shard_done(number):
            build.write_table("scores", _score(scorer, shard, prompts, generic, runtime.batch_size), shard=number)
            build.mark_shard(number, {"images": len(shard)})
        done += len(shard)
        on_progress(done, total)


def _score(
    scorer: "ClipScorer", shard: pd.DataFrame, prompts: pd.DataFrame, generic: Mapping[str, str], batch_size: int
) -> pd.DataFrame:
    """Rows of `scores` for one shard of images; those without a picture have none."""
    from popalign_core.evaluation import clip_score

    shard = shard[shard["image"].notna()]
    if shard.empty:
        return pd.DataFrame(columns=["image_id", "scorer", "version", "value"]).astype({"value": float})
    embeds = clip_score.embed_images(scorer, (pixels for _, pixels in iter_batches(shard, batch_size)))
    texts = prompts.loc[shard["prompt_id"], "text"].tolist()
    values = clip_score.clip_scores(embeds, clip_score.embed_texts(scorer, texts))
    parts = [pd.DataFrame({"image_id": shard["image_id"], "scorer": clip_score.CLIP_SCORE, "value": values})]
    asked = shard["prompt_id"].isin(list(generic)).to_numpy()
    if asked.any():
        subjects = list(generic)
        answers = [subjects.index(prompt_id) for prompt_id in shard.loc[asked, "prompt_id"]]
        candidates = clip_score.embed_texts(scorer, list(generic.values()))
        right = clip_score.subject_accuracy(embeds[asked.nonzero()[0]], candidates, answers)
        columns = {"image_id": shard.loc[asked, "image_id"], "scorer": clip_score.SUBJECT_ACCURACY, "value": right}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True).assign(version=scorer.version)
