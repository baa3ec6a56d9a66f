"""Set members meet their latents and captions; training ends with a model and a log; a stop resumes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flows.plan.execution import call_directly, run_plan
from flows.plan.planning import plan_run
from flows.plan.steps import needed_for
from popalign_core.config import (
    FairDiffusionConfig,
    ModelConfig,
    PipelineConfig,
    ProbeConfig,
    RuntimeConfig,
    SDEditConfig,
)
from popalign_core.errors import InputError, StoreError
from popalign_core.evaluation.fairness import discrepancy
from popalign_core.ids import image_seed
from popalign_core.models.embeddings import PromptEmbeddings
from popalign_core.models.loading import load_pipeline, model_hash
from popalign_core.sampling.engine import sample_images
from storage.store import ArtifactRef
from tasks.common.measuring import CLASSIFIERS
from tasks.common.stage_object import no_progress, open_store
from tasks.common.tensors import read_embeddings
from tasks.stages.round_inputs import TrainingRefs
from tasks.stages.train import train_model
from tasks.stages.train_inputs import read_preferences, run_training
from tasks.stages.train_view import TrainView


def refs_of(inputs: dict[str, ArtifactRef]) -> TrainingRefs:
    return TrainingRefs(**asdict_refs(inputs))


def asdict_refs(inputs: dict[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    nodes = {"preferences": "preferences", "sample": "sample", "prompts": "identities", "attributes": "attributes"}
    return {name: inputs[node] for name, node in nodes.items()}


@pytest.fixture
def inputs(give_artifacts: Callable[[str], dict[str, ArtifactRef]]) -> dict[str, ArtifactRef]:
    return give_artifacts("preferences")


def test_each_member_brings_its_own_latents_and_the_neutral_caption(
    inputs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    store = open_store(tiny_runtime)
    data = read_preferences(store, refs_of(inputs), tiny_config.axes)
    members = store.read_table(inputs["preferences"], "preferences")
    images = store.read_table(inputs["sample"], "images").set_index("image_id")
    assert len(data.latents) == len(members) > 0
    assert data.preferred.tolist() == (members["role"] == "preferred").tolist()
    for row, image_id in enumerate(members["image_id"]):
        file, place = images.loc[image_id, ["latents_file", "latents_row"]]
        expected = load_file(store.localize(inputs["sample"], file))["latents"][int(place)]
        assert torch.equal(data.latents[torch.tensor([row])][0], expected)
    captions = {(int(p), members["prompt_id"][row]) for row, p in enumerate(data.prompt_index)}
    assert len(captions) == members["prompt_id"].nunique()


def test_what_is_retained_is_the_preferred_and_the_generic_images_under_their_own_captions(
    inputs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    store = open_store(tiny_runtime)
    data = read_preferences(store, refs_of(inputs), tiny_config.axes)
    members = store.read_table(inputs["preferences"], "preferences")
    images = store.read_table(inputs["sample"], "images").set_index("image_id")
    kinds = store.read_table(inputs["identities"], "prompts").set_index("prompt_id")["kind"]
    retained = store.read_table(inputs["preferences"], "retained")
    generic = {image_id for image_id, prompt_id in images["prompt_id"].items() if kinds[prompt_id] == "generic"}
    preferred = set(members.loc[members["role"] == "preferred", "image_id"])
    assert len(generic) == 4
    assert preferred
    assert set(retained["image_id"]) == generic | preferred
    assert dict(retained["kind"].value_counts()) == {"generic": 4, "specific": len(preferred)}
    ids, embeddings = read_embeddings(store.localize(inputs["sample"], "embeddings.safetensors"))
    for row, (image_id, prompt_id) in enumerate(zip(retained["image_id"], retained["prompt_id"], strict=True)):
        assert prompt_id == images["prompt_id"][image_id]
        file, place = images.loc[image_id, ["latents_file", "latents_row"]]
        expected = load_file(store.localize(inputs["sample"], file))["latents"][int(place)]
        assert torch.equal(data.retained_latents[torch.tensor([row])][0], expected)
        caption = data.prompt_embeds[data.retained_prompt_index[row]]
        assert torch.equal(caption, embeddings.prompt_embeds[ids.index(prompt_id)])
    assert len(data.prompt_embeds) == members["prompt_id"].nunique() + retained["prompt_id"].nunique()


def test_no_preferences_is_an_error(
    inputs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    store = open_store(tiny_runtime)
    payload = {"stage": "preferences", "version": "1", "config": {"case": "empty"}, "inputs": {}}
    ref = ArtifactRef("preferences", store.key(**payload))
    with store.build(ref, payload) as build:
        build.write_table("preferences", store.read_table(inputs["preferences"], "preferences").head(0))
    with pytest.raises(InputError, match="there are no preferences to train on"):
        read_preferences(store, TrainingRefs(ref, inputs["sample"]), tiny_config.axes)


def test_logs_that_cannot_be_written_are_named_before_a_step_is_done(
    inputs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    runtime = tiny_runtime.model_copy(update={"log_folder": str(tmp_path / "file"), "trackers": ("tensorboard",)})
    with pytest.raises(
        StoreError, match=r"cannot make the log folder .*file/train-.*, which runtime\.log_folder moves"
    ):
        train_model(**asdict_refs(inputs), config=tiny_config, runtime=runtime)
    unlogged = runtime.model_copy(update={"trackers": ()})
    ref = train_model(**asdict_refs(inputs), config=tiny_config, runtime=unlogged)
    assert open_store(runtime).read_table(ref, "training_log")["step"].max() == 4


def test_a_stopped_training_goes_on_and_ends_the_same(
    inputs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    arguments = {"config": tiny_config, "runtime": tiny_runtime}

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(**asdict_refs(inputs), **arguments, on_progress=stop)
    seen: list[int] = []
    ref = train_model(**asdict_refs(inputs), **arguments, on_progress=lambda done, total: seen.append(done))
    assert seen == [3, 4]
    whole = tiny_runtime.model_copy(update={"root": str(tmp_path / "undisturbed")})
    refs = run_plan(plan_run(tiny_config, whole, needed_for("train")), whole, call_directly())
    assert refs["train"] == ref
    ours, theirs = (open_store(runtime) for runtime in (tiny_runtime, whole))
    pd.testing.assert_frame_equal(ours.read_table(ref, "training_log"), theirs.read_table(ref, "training_log"))
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert ours.localize(ref, weights).read_bytes() == theirs.localize(ref, weights).read_bytes()
    assert not [name for name in ours.manifest(ref).files if name.startswith("checkpoints")]


def test_the_probe_looks_at_training_prompts_with_fixed_seeds(
    inputs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    probe = ProbeConfig(every=2, n_prompts=2, n_images=4, seed=5)
    training = tiny_config.training.model_copy(update={"probe": probe, "n_steps": 4})
    config = tiny_config.model_copy(update={"training": training})
    store = open_store(tiny_runtime)
    ref = train_model(**asdict_refs(inputs), config=config, runtime=tiny_runtime)
    log = store.read_table(ref, "training_log").pivot(index="step", columns="name", values="value")
    seen = log[["probe/discrepancy/gender", "probe/face_share", "probe/clip_score"]].dropna()
    assert list(seen.index) == [0, 2, 4]
    # by hand, of the base: neutral training prompts, four pictures each, read by the same classifier
    reader = CLASSIFIERS[config.attributes.classifier].load(config.attributes, "cpu")
    data = read_preferences(store, refs_of(inputs), config.axes)
    pipeline = load_pipeline(config.model, device=torch.device("cpu"))
    neutral = data.prompt_index.unique()
    chosen = neutral[:: max(1, len(neutral) // 2)][:2]
    embeddings = PromptEmbeddings(data.prompt_embeds[chosen], data.pooled_prompt_embeds[chosen])
    empty = PromptEmbeddings(data.empty_prompt_embeds, data.empty_pooled)
    seeds = [image_seed(5, f"probe/{prompt}", image) for prompt in range(len(chosen)) for image in range(4)]
    # in the probe's own batches: bits are equal at equal batch shapes
    readings = []
    for row, start in enumerate(range(0, len(seeds), tiny_runtime.batch_size)):
        batch = seeds[start : start + tiny_runtime.batch_size]
        pixels, _ = sample_images(pipeline, embeddings, empty, [row] * len(batch), batch, config.sampling)
        readings += reader.read(pixels)
    assert len(readings) == 4 * len(chosen) > 0
    men = sum(reading.probabilities["gender"]["male"] > 0.5 for reading in readings if reading.n_faces)
    faces = sum(reading.n_faces for reading in readings)
    assert seen["probe/face_share"][0] == faces / len(seeds)
    assert seen["probe/discrepancy/gender"][0] == pytest.approx(discrepancy([men, faces - men]))


def test_text_encoders_and_vae_are_not_even_loaded(
    inputs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    bare = shutil.copytree(tiny_config.model.name, tmp_path / "bare")
    for part in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(bare / part)
    config = tiny_config.model_copy(update={"model": ModelConfig(name=str(bare))})
    store = open_store(tiny_runtime)
    denoiser, log = run_training(
        store, refs_of(inputs), TrainView.of(config, inputs), tiny_runtime, tmp_path / "work", lambda *_: None
    )
    assert type(denoiser).__name__ == "UNet2DConditionModel"
    assert max(row["step"] for row in log) == 4


def test_nothing_in_the_artifact_says_where_the_base_model_lay(
    inputs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """The key does not either: who has the same weights elsewhere is given this artifact."""
    moved = shutil.copytree(tiny_config.model.name, tmp_path / "moved-elsewhere")
    training = tiny_config.training.model_copy(update={"lora_rank": 2})
    here = tiny_config.model_copy(update={"training": training})
    there = here.model_copy(update={"model": ModelConfig(name=str(moved))})
    ref = train_model(**asdict_refs(inputs), config=there, runtime=tiny_runtime)
    assert train_model(**asdict_refs(inputs), config=here, runtime=tiny_runtime) == ref
    store = open_store(tiny_runtime)
    files = {name: store.localize(ref, name).read_bytes() for name in store.manifest(ref).files}
    names = {"README.md", "lora/pytorch_lora_weights.safetensors", "trained.json", "training_log.parquet"}
    assert files.keys() == names
    assert json.loads(files["trained.json"]) == {
        "format": 1, "what": "lora", "component": "unet", "base": model_hash(there.model), "start": None,
    }  # fmt: skip
    assert [name for name, content in files.items() if b"moved-elsewhere" in content] == []
    assert f"Base model: the weights `{model_hash(there.model)}`" in files["README.md"].decode()


def test_a_probe_draws_what_the_model_draws_by_itself(
    inputs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """A sampler that chooses identities, or starts from layouts, needs what the probe does not have."""
    (tmp_path / "layouts").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "layouts" / "a.png")
    training = tiny_config.training.model_copy(update={"probe": ProbeConfig(every=4, n_images=1), "n_steps": 4})
    choosing = {"fair_diffusion": FairDiffusionConfig(), "sdedit": SDEditConfig(folder=str(tmp_path / "layouts"))}
    logs = []
    for changes in ({}, choosing):
        sampling = tiny_config.sampling.model_copy(update=changes)
        config = tiny_config.model_copy(update={"training": training, "sampling": sampling})
        view = TrainView.of(config, inputs)
        work = tmp_path / f"work-{len(logs)}"
        logs.append(run_training(open_store(tiny_runtime), refs_of(inputs), view, tiny_runtime, work, no_progress)[1])
    assert logs[0] == logs[1]
    assert "probe/face_share" in {row["name"] for row in logs[0]}
