"""What each stage's key depends on, and what it does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.plan.execution import call_directly
from flows.plan.planning import plan_run
from flows.plan.runs import run_stage
from flows.plan.steps import PROMPT_STEPS, evaluation_steps
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.presets import preset
from popalign_core.errors import ConfigError
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store, reference
from tasks.stages.attributes import read_attributes
from tasks.stages.benchmarks import add_benchmarks
from tasks.stages.calibration import calibrate_classifier
from tasks.stages.comparison import compare_statistics
from tasks.stages.evaluate import evaluate_system
from tasks.stages.identities import add_identities
from tasks.stages.preferences import build_preferences
from tasks.stages.prompts import write_prompts
from tasks.stages.report import ReportView, write_report
from tasks.stages.sample import sample_images
from tasks.stages.scores import score_images
from tasks.stages.sweep import tabulate_sweep
from tasks.stages.train import train_model

P, S, A, C = (ArtifactRef(stage, f"{stage}-key") for stage in ("identities", "sample", "attributes", "scores"))


def changed(config: PipelineConfig, **fields: Any) -> PipelineConfig:
    """A copy with `section__field=value`."""
    document = config.model_dump()
    for name, value in fields.items():
        section, _, field = name.partition("__")
        document[section] = document[section] | {field: value} if field else value
    return PipelineConfig.model_validate(document)


def with_target(config: PipelineConfig) -> PipelineConfig:
    axis = config.axes[0].model_copy(update={"target": {"male": 0.25, "female": 0.75}})
    return config.model_copy(update={"axes": (axis, *config.axes[1:])})


def test_the_key_is_pinned(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    """Another key here means that everybody's artifacts are made again: bump VERSION and say so in CHANGELOG."""
    request = write_prompts.request(tiny_config)
    assert reference(open_store(tiny_runtime), request).key == "prompts-v2-c341203a54ab7f0fe3a7443c5b02cfd3"
    assert replace(request, payload={**request.payload, "version": "3"}) != request


GOLDEN = {
    "prompts": "prompts-v2-c341203a54ab7f0fe3a7443c5b02cfd3",
    "identities": "identities-v2-6df9818b2291abb797f977cbad4efe12",
    "benchmarks": "benchmarks-v2-e1048bcd711c25f640d8eaf93478f9d0",
    "sample": "sample-v1-1297ba2bf2ff73ff9f2d2d036820c20a",
    "sample-eval": "sample-v1-2ffa70c715c3f4a33a6d5d70ca8daf5b",
    "attributes": "attributes-v1-e74a046a1b94dde718a3c0735fd6dfd5",
    "calibration": "calibration-v1-a95f766d3ac44fe06307f65e22cb72a9",
    "preferences": "preferences-v1-2a67df78f9ef6ad129dcdd9cee01641f",
    "train": "train-v4-cf012b622d03e57ca1e4184e30ccc5a0",
    "scores": "scores-v3-997c5be96b5e1b2e14443a6a8b20a3f8",
    "evaluate": "evaluate-v7-fa7fbdd376855e3e0e4244aac7b00e7d",
    "report": "report-v10-889deba82a50e153e9c470753a198b44",
    "comparison": "comparison-v10-428eab1c5aa574052125a0284374be32",
    "sweep": "sweep-v5-f67beec04af819c889216fb9e389b6b4",
}


def test_the_key_of_every_stage_is_pinned(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    """Another key here means that everybody's artifacts of the stage are made again: see above."""
    scorer = {"kind": "hps", "path": "absent.pt", "tokenizer": "absent"}
    config = changed(
        tiny_config,
        model={"name": "owner/name", "revision": "0a1b"},
        prompts__benchmarks={"descriptor": {"n_images": 2}},
        training__checkpoint_every=1,
    )
    read = {"prompts": P, "sample": S, "attributes": A}
    requests = {
        "prompts": write_prompts.request(config),
        "identities": add_identities.request(config, prompts=P),
        "benchmarks": add_benchmarks.request(config, prompts=P),
        "sample": sample_images.request(config, prompts=P, purpose="preferences"),
        "sample-eval": sample_images.request(config, prompts=P, model=A, purpose="evaluation"),
        "attributes": read_attributes.request(config, prompts=P, sample=S),
        "calibration": calibrate_classifier.request(config, **read),
        "preferences": build_preferences.request(config, **read),
        "train": train_model.request(config, preferences=A, sample=S, prompts=P, attributes=A),
        "scores": score_images.request(changed(config, evaluation__scorers={"hps": scorer}), prompts=P, sample=S),
        "evaluate": evaluate_system.request(config, **read, scores=C, system="base"),
        "report": write_report.ask(ReportView.of(config, {}), {"prompts": P}),
        "comparison": compare_statistics.request(config, prompts=P, systems=("base",), n_seeds=1, scale=1.0),
        "sweep": tabulate_sweep.request(config, comparison=C, points=[], failed={}),
    }
    store = open_store(tiny_runtime)
    assert {name: reference(store, request).key for name, request in requests.items()} == GOLDEN


def test_a_target_reaches_the_preferences_and_the_metrics_but_no_image(tiny_config: PipelineConfig) -> None:
    moved = with_target(tiny_config)
    assert write_prompts.request(moved) == write_prompts.request(tiny_config)
    assert add_identities.request(moved, prompts=P) == add_identities.request(tiny_config, prompts=P)
    assert read_attributes.request(moved, prompts=P, sample=S) == read_attributes.request(
        tiny_config, prompts=P, sample=S
    )
    one, other = (build_preferences.request(c, prompts=P, sample=S, attributes=A) for c in (tiny_config, moved))
    assert one != other
    one, other = (
        evaluate_system.request(c, prompts=P, sample=S, attributes=A, scores=C, system="base")
        for c in (tiny_config, moved)
    )
    assert one != other


def test_training_settings_leave_the_images_alone(tiny_config: PipelineConfig) -> None:
    moved = changed(tiny_config, training__beta=99.0)
    images = [sample_images.request(c, prompts=P, purpose="preferences") for c in (tiny_config, moved)]
    assert images[0] == images[1]
    assert train_model.request(moved, preferences=A, sample=S) != train_model.request(
        tiny_config, preferences=A, sample=S
    )


@pytest.mark.parametrize("field", ["preferences__n_neutral", "preferences__n_specific", "sampling__n_steps"])
def test_what_draws_other_images_changes_their_key(tiny_config: PipelineConfig, field: str) -> None:
    moved = changed(tiny_config, **{field: 9})
    assert sample_images.request(moved, prompts=P, purpose="preferences") != sample_images.request(
        tiny_config, prompts=P, purpose="preferences"
    )


def test_evaluation_images_have_a_seed_of_their_own(tiny_config: PipelineConfig) -> None:
    moved = changed(tiny_config, evaluation__seed=5)
    assert sample_images.request(moved, prompts=P, purpose="preferences") == sample_images.request(
        tiny_config, prompts=P, purpose="preferences"
    )
    assert sample_images.request(moved, prompts=P, purpose="evaluation").payload["config"]["sampling"]["seed"] == 5


def test_a_model_counts_by_its_weights_not_by_its_path(tiny_config: PipelineConfig, tmp_path: Any) -> None:
    import shutil

    shutil.copytree(tiny_config.model.name, tmp_path / "copy")
    moved = changed(tiny_config, model__name=str(tmp_path / "copy"))
    assert sample_images.request(moved, prompts=P, purpose="evaluation") == sample_images.request(
        tiny_config, prompts=P, purpose="evaluation"
    )
    trained = sample_images.request(
        tiny_config, prompts=P, purpose="evaluation", model=ArtifactRef("train", "train-key")
    )
    assert trained.payload["inputs"] == {"prompts": "identities-key", "model": "train-key"}
    assert "hash" not in trained.payload["config"]["model"]


def test_what_makes_sampling_cheaper_is_hashed_where_it_is_asked_for(tiny_config: PipelineConfig) -> None:
    plain, reusing, stored = (
        sample_images.request(changed(tiny_config, **fields), prompts=P, purpose="evaluation").payload["config"]
        for fields in ({"sampling__reuse_interval": 1}, {"sampling__reuse_interval": 3}, {"model__storage": "float8"})
    )
    # the keys of what was drawn before there was either stay
    assert "reuse_interval" not in plain["sampling"]
    assert plain["model"].keys() == {"dtype", "hash"}
    assert reusing == plain | {"sampling": plain["sampling"] | {"reuse_interval": 3}}
    assert stored == plain | {"model": plain["model"] | {"storage": "float8"}}
    trained = ArtifactRef("train", "train-key")
    drawn = sample_images.request(
        changed(tiny_config, model__storage="float8"), prompts=P, purpose="evaluation", model=trained
    )
    assert drawn.payload["config"]["model"] == {"dtype": "float32", "storage": "float8"}


def test_float8_is_refused_before_a_run_draws_what_it_cannot_train_on(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    stored = changed(tiny_config, model__storage="float8")
    with pytest.raises(ConfigError, match=r"model\.storage is 'float8', which is for sampling alone; leave it out to"):
        plan_run(stored, tiny_runtime)
    measured = plan_run(stored, tiny_runtime, (*PROMPT_STEPS, *evaluation_steps("base")))
    assert measured[-1].node == "evaluate:base"


@pytest.mark.parametrize(
    ("fields", "runtime", "message"),
    [
        ({"training__n_pairs": 8}, {"micro_pairs": 3}, r"n_pairs is 8: 1 processes with micro_pairs 3 do not divide"),
        ({"training__n_pairs": 8}, {"n_processes": 3}, r"n_pairs is 8: 3 processes"),
        ({"training__min_timestep": 1000}, {}, r"min_timestep reaches 1000, the model has the timesteps 0 to 999"),
        ({}, {"accelerate_config": "dpp"}, r"accelerate_config 'dpp' is neither a file nor one of ddp, fsdp2"),
    ],
)
def test_settings_that_training_refuses_are_refused_before_a_run_draws_its_images(
    fields: dict[str, Any],
    runtime: dict[str, Any],
    message: str,
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
) -> None:
    asked, here = changed(tiny_config, **fields), tiny_runtime.model_copy(update=runtime)
    with pytest.raises(ConfigError, match=message):
        plan_run(asked, here)
    with pytest.raises(ConfigError, match=message):
        run_stage("train", asked, here, call=call_directly())
    assert not list(Path(tiny_runtime.root).glob("*/*"))
    measured = plan_run(asked, here, (*PROMPT_STEPS, *evaluation_steps("base")))
    assert measured[-1].node == "evaluate:base"


def test_anchors_are_asked_for_before_a_run_draws_what_has_none(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    anchored = changed(tiny_config, training__objective="popalign", training__normaliser="anchor")
    assert "train" in {node.node for node in plan_run(anchored, tiny_runtime)}
    bare = changed(anchored, prompts__retained_subjects=())
    with pytest.raises(ConfigError, match=r"normaliser is 'anchor', and there is no prompt .*retained_subjects or"):
        plan_run(bare, tiny_runtime)
    zero = changed(bare, training__normaliser="zero")
    assert "train" in {node.node for node in plan_run(zero, tiny_runtime)}


def test_where_the_language_model_answers_does_not_matter() -> None:
    def asking(url: str, temperature: float) -> PipelineConfig:
        llm = {"base_url": url, "temperature": temperature}
        return changed(preset("smoke"), prompts__source="llm", prompts__n_train=5, prompts__llm=llm)

    here, there, warmer = asking("http://a/v1", 1.0), asking("http://b/v1", 1.0), asking("http://a/v1", 1.5)
    assert write_prompts.request(here) == write_prompts.request(there)
    assert write_prompts.request(here) != write_prompts.request(warmer)


def test_a_start_enters_the_key_of_a_training_and_its_absence_does_not(tiny_config: PipelineConfig) -> None:
    plain = train_model.request(tiny_config, preferences=A, sample=S, prompts=P)
    assert plain.payload["inputs"] == {
        "preferences": "attributes-key",
        "sample": "sample-key",
        "prompts": "identities-key",
    }
    begun = train_model.request(
        tiny_config, preferences=A, sample=S, prompts=P, start=ArtifactRef("train", "train-key")
    )
    assert begun.payload["inputs"] == plain.payload["inputs"] | {"start": "train-key"}


@pytest.mark.parametrize(
    "fields",
    [
        {"attributes__min_probability": 0.6},
        {"attributes__several_faces": "largest"},
        {"sampling__guidance_scale": 3.0},
        {"sampling__n_steps": 3},
    ],
)
def test_what_the_probe_reads_is_in_the_key_of_the_training(
    tiny_config: PipelineConfig, fields: dict[str, Any]
) -> None:
    """It may end the training, and its figures are in the log; without a probe none of it is read."""
    inputs = {"preferences": A, "sample": S, "prompts": P, "attributes": A}
    watched = changed(tiny_config, training__probe={"every": 2})
    assert train_model.request(watched, **inputs) != train_model.request(changed(watched, **fields), **inputs)
    assert train_model.request(tiny_config, **inputs) == train_model.request(changed(tiny_config, **fields), **inputs)


def test_a_target_is_in_the_key_of_a_training_on_sets_made_elsewhere(tiny_config: PipelineConfig) -> None:
    """No key of preferences holds it there; the probe looks at it."""
    watched = changed(tiny_config, training__probe={"every": 2})
    requests = [train_model.request(c, preferences=A, sample=S) for c in (watched, with_target(watched))]
    assert requests[0] != requests[1]
    unwatched = [train_model.request(c, preferences=A, sample=S) for c in (tiny_config, with_target(tiny_config))]
    assert unwatched[0] == unwatched[1]
