"""Stage `scores`: any scorers, features kept, what cannot be measured said, and a key that follows contents."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scorer_files import aesthetic_state, clip_tokenizer, open_clip_state, save_clip_folder

from popalign_core.config import (
    AestheticsConfig,
    ClipScoreConfig,
    EvaluationConfig,
    HPSConfig,
    InceptionConfig,
    PipelineConfig,
    RuntimeConfig,
)
from popalign_core.errors import InputError
from popalign_core.models import loading
from popalign_core.models.clip import embed_images, load_clip
from storage.formats.images import decode_png
from storage.store import ArtifactRef, Store
from tasks.common import measuring
from tasks.common.stage_object import open_store
from tasks.stages.attributes import read_attributes
from tasks.stages.evaluate import evaluate_system
from tasks.stages.feature_files import read_features
from tasks.stages.sample import sample_images
from tasks.stages.scores import read_unmeasured, score_images
from tasks.stages.set_quality import quality_rows

P, S = ArtifactRef("identities", "identities-key"), ArtifactRef("sample", "sample-key")


def with_scorers(config: PipelineConfig, **scorers: object) -> PipelineConfig:
    evaluation = EvaluationConfig.model_validate(config.evaluation.model_dump() | {"scorers": scorers})
    return config.model_copy(update={"evaluation": evaluation})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    save_clip_folder(folder / "clip")
    clip_tokenizer(folder / "words")
    torch.save({"state_dict": open_clip_state()}, folder / "HPS_v2.1_compressed.pt")
    torch.save(aesthetic_state(), folder / "head.pth")
    return folder


@pytest.fixture
def drawn(give_artifacts: Callable[[str], dict[str, ArtifactRef]]) -> tuple[ArtifactRef, ArtifactRef]:
    refs = give_artifacts("sample-eval:base")
    return refs["identities"], refs["sample-eval:base"]


def all_of(files: Path, config: PipelineConfig) -> PipelineConfig:
    clip = str(files / "clip")
    return with_scorers(
        config,
        **{
            "hps_v2.1": HPSConfig(
                kind="hps", path=str(files / "HPS_v2.1_compressed.pt"), tokenizer=str(files / "words")
            )
        },
        clip_score=ClipScoreConfig(kind="clip", path=clip),
        aesthetics=AestheticsConfig(kind="aesthetics", path=str(files / "head.pth"), clip=clip),
        pick_score={"kind": "pick-score", "path": str(files / "PickScore_v1")},
        inception=InceptionConfig(kind="inception", path=str(files / "inception-2015-12-05.pt")),
    )


def pixels_of(store: Store, sample: ArtifactRef) -> pd.DataFrame:
    images = store.read_table(sample, "images")
    return images.assign(pixels=[decode_png(cell["bytes"]) for cell in images["image"]])


def test_the_shipped_clip_scores_and_its_features_are_kept(
    drawn: tuple[ArtifactRef, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    prompts, sample = drawn
    ref, store = score_images(prompts, sample, config=tiny_config, runtime=tiny_runtime), open_store(tiny_runtime)
    table, images = store.read_table(ref, "scores"), pixels_of(store, sample)
    units = table.groupby("scorer")["unit"].first().to_dict()
    assert units == {"clip_score": "100 x cosine", "subject_accuracy": "share", "diversity": "1 - cosine"}
    assert read_unmeasured(store, ref) == {}
    features = read_features(store, ref)["clip"]
    clip = load_clip(measuring.clip_folder())
    expected = embed_images(clip, [images["pixels"].tolist()])
    assert list(features.image_ids) == images["image_id"].tolist()
    torch.testing.assert_close(features.values, expected, rtol=0, atol=1e-6)
    # Diversity of one prompt by hand: mean of 1 - cosine over the pairs.
    chosen = images["prompt_id"] == images["prompt_id"].iloc[0]
    cosines = (expected[chosen.tolist()] @ expected[chosen.tolist()].T).double().numpy()
    pairs = 1 - cosines[np.triu_indices(len(cosines), 1)]
    diversity = table[table["scorer"] == "diversity"].set_index("image_id")["value"]
    assert diversity[images.loc[chosen, "image_id"]].mean() == pytest.approx(pairs.mean(), abs=1e-6)


def test_a_benchmark_with_lone_pictures_has_no_diversity(
    drawn: tuple[ArtifactRef, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    lone = tiny_config.model_copy(update={"evaluation": tiny_config.evaluation.model_copy(update={"n_specific": 1})})
    sample = sample_images(drawn[0], purpose="evaluation", config=lone, runtime=tiny_runtime)
    ref, store = score_images(drawn[0], sample, config=lone, runtime=tiny_runtime), open_store(tiny_runtime)
    kinds = store.read_table(drawn[0], "prompts").set_index("prompt_id")["kind"]
    placed = store.read_table(sample, "images").set_index("image_id")["prompt_id"].map(kinds)
    table = store.read_table(ref, "scores")
    assert set(placed[table.loc[table["scorer"] == "diversity", "image_id"]]) == {"neutral", "generic"}


def test_configured_scorers_score_and_the_absent_are_rows(
    drawn: tuple[ArtifactRef, ArtifactRef], files: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    config, (prompts, sample) = all_of(files, tiny_config), drawn
    ref, store = score_images(prompts, sample, config=config, runtime=tiny_runtime), open_store(tiny_runtime)
    table = store.read_table(ref, "scores")
    n_images = store.manifest(sample).rows["images"]
    counts = table["scorer"].value_counts().to_dict()
    assert counts == {"clip_score": n_images, "hps_v2.1": n_images, "aesthetics": n_images, "diversity": n_images,
                      "subject_accuracy": 4}  # fmt: skip
    assert set(read_unmeasured(store, ref)) == {"pick_score", "fid", "kid"}
    both = {"config": config, "runtime": tiny_runtime}
    attributes = read_attributes(prompts, sample, **both)
    metrics = store.read_table(evaluate_system(prompts, sample, attributes, ref, system="base", **both), "metrics")
    rows = metrics[metrics["metric"] == "pick_score"]
    assert sorted(rows["benchmark"]) == ["generic", "neutral", "specific"]
    assert rows["value"].isna().all()
    assert rows["n"].tolist() == [0, 0, 0]
    assert rows["note"].str.startswith(f"not measured: there is nothing at {files / 'PickScore_v1'}").all()
    assert set(metrics.loc[metrics["value"].notna(), "metric"]) >= {"hps_v2.1", "aesthetics", "clip_score", "diversity"}


def test_distances_of_a_system_from_itself_are_zero(
    drawn: tuple[ArtifactRef, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    prompts, sample = drawn
    ref, store = score_images(prompts, sample, config=tiny_config, runtime=tiny_runtime), open_store(tiny_runtime)
    systems = {"base": [(sample, ref), (sample, ref)], "same": [(sample, ref), (sample, ref)]}
    with pytest.raises(InputError, match="images that are not among"):
        quality_rows(store, store.read_table(prompts, "prompts"), systems, tiny_config.evaluation)
    systems = {"base": [(sample, ref)], "same": [(sample, ref)]}
    rows = quality_rows(store, store.read_table(prompts, "prompts"), systems, tiny_config.evaluation)
    assert set(zip(rows["system"], rows["metric"], rows["benchmark"], strict=True)) == {
        ("same", "cmmd", kind) for kind in ("neutral", "specific", "generic")
    }
    assert rows["value"].abs().max() < 1e-9


def test_the_key_follows_contents_never_paths(
    files: Path, tmp_path: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    def request(folder: Path) -> object:
        return score_images.request(all_of(folder, tiny_config), prompts=P, sample=S)

    first = request(files)
    shutil.copytree(files, tmp_path / "elsewhere")
    assert request(tmp_path / "elsewhere") == first
    torch.save(aesthetic_state(seed=1), tmp_path / "elsewhere" / "head.pth")
    changed = request(tmp_path / "elsewhere")
    assert changed != first
    # Weights that come are another key: what was not measured will be.
    save_clip_folder(tmp_path / "elsewhere" / "PickScore_v1")
    assert request(tmp_path / "elsewhere") != changed
    assert score_images.request(tiny_config, prompts=P, sample=S) != first


def test_an_empty_table_leaves_keys_and_documents_alone(tiny_config: PipelineConfig) -> None:
    same = with_scorers(tiny_config)
    assert score_images.request(same, prompts=P, sample=S) == score_images.request(tiny_config, prompts=P, sample=S)
    assert "scorers" not in same.model_dump()["evaluation"]
    assert score_images.request(tiny_config, prompts=P, sample=S).payload["config"].keys() == {"clip"}


def test_weights_are_read_for_the_key_only_when_they_change(
    files: Path, tiny_config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, original = [], loading.hash_file
    monkeypatch.setattr(measuring, "hash_file", lambda path: read.append(path.name) or original(path))
    config = all_of(files, tiny_config)
    for _ in range(3):
        score_images.request(config, prompts=P, sample=S)
    assert sorted(read) == ["HPS_v2.1_compressed.pt", "head.pth"]
    os.utime(files / "head.pth", (1, 1))
    score_images.request(config, prompts=P, sample=S)
    assert sorted(read) == ["HPS_v2.1_compressed.pt", "head.pth", "head.pth"]


def test_a_corrupt_file_is_an_error_not_a_missing_one(
    drawn: tuple[ArtifactRef, ArtifactRef], files: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    (files / "head.pth").write_bytes(b"html, as of a failed download")
    with pytest.raises(InputError, match=r"\[scores/scores-v3-.*head\.pth is not a torch checkpoint"):
        score_images(*drawn, config=all_of(files, tiny_config), runtime=tiny_runtime)
