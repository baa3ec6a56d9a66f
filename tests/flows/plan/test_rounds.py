"""Training in rounds through the plan: its nodes and keys, its images and artifacts, kills, workers, systems."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forking import run_and_die
from safetensors import safe_open
from safetensors.torch import load_file

from flows.plan.checkpoints import find_checkpoints
from flows.plan.compare_systems import plan_systems
from flows.plan.execution import OnProgress, call_directly, run_plan
from flows.plan.expected_work import expected_work
from flows.plan.planning import plan_keys, plan_run
from flows.plan.runs import run_stage
from flows.plan.steps import PIPELINE, pipeline_steps
from flows.terminal.terminal_tables import plan_lines
from popalign_core.config import PipelineConfig, RuntimeConfig, TrainingConfig, parse_config
from popalign_core.errors import ConfigError
from storage.store import ArtifactRef, Store
from tasks.common.stage_object import open_store
from tasks.stages.train import train_model
from tasks.stages.train_view import TrainView

ROUNDS = {
    "objective": "population-policy",
    "rounds": 2,
    "n_steps": 2,
    "n_pairs": 4,
    "pairs_per_set": 2,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "linear",
    "n_warmup_steps": 0,
    "population": {"n_images": 5, "round_batch": 3},
}
NODES = ("sample-round1", "attributes-round1", "train-round1", "sample-round2", "attributes-round2", "train")


def in_rounds(config: PipelineConfig, **changes: Any) -> PipelineConfig:
    training = TrainingConfig.model_validate({**config.training.model_dump(), **ROUNDS, **changes})
    return config.model_copy(update={"training": training})


def run(
    config: PipelineConfig, runtime: RuntimeConfig, on_progress: OnProgress | None = None
) -> dict[str, ArtifactRef]:
    """Everything up to the trained model."""
    planned = plan_run(config, runtime, target="train")
    return run_plan(planned, runtime, call_directly(on_progress))


def content(store: Store, ref: ArtifactRef) -> dict[str, bytes]:
    return {name: store.localize(ref, name).read_bytes() for name in sorted(store.manifest(ref).files)}


def test_one_round_of_pairs_is_the_pipeline_as_it_was(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    """No node and no key knows of rounds."""
    assert pipeline_steps(tiny_config) == PIPELINE
    assert not {"rounds", "population"} & TrainingConfig().model_dump().keys()
    trained = {node.node: node for node in plan_keys(tiny_config, tiny_runtime, PIPELINE)}["train"]
    assert trained.request is not None
    assert trained.request.payload["config"].keys() == {"training", "model", "sampling", "axes"}
    assert trained.request.payload["inputs"].keys() == {"preferences", "sample", "prompts", "attributes"}


def test_the_plan_shows_every_round(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    """Two neutral training prompts of five images a round, two steps each."""
    config = in_rounds(tiny_config)
    planned = plan_run(config, tiny_runtime)
    by_node = {node.node: node for node in planned}
    assert [node.node for node in planned if node.node in NODES] == list(NODES)
    work = [(by_node[name].n_images, by_node[name].n_steps) for name in NODES]
    assert work == [(10, 0), (10, 0), (0, 2)] * 2
    assert len({by_node[name].ref for name in NODES}) == 6
    offline = {node.node: node.ref for node in plan_run(tiny_config, tiny_runtime)}
    same = {name for name in offline if by_node[name].ref == offline[name]}
    changed = {
        "train",
        "report",
        *(f"{part}:aligned" for part in ("sample-eval", "attributes-eval", "scores", "evaluate")),
    }
    assert set(offline) - same == changed
    n_images, n_steps = expected_work(config)
    assert (n_images, n_steps) == (expected_work(tiny_config)[0] + 20, 4)
    lines = plan_lines(planned)
    assert [line.split()[:4] for line in lines if line.startswith("sample-round")] == [
        ["sample-round1", "miss", "10", "images"],
        ["sample-round2", "miss", "10", "images"],
    ]
    assert lines[-1].endswith(f"about {n_images} images to sample, 4 training steps")


def test_a_round_has_images_a_key_and_a_state_of_its_own(
    give_artifacts: Callable[[str], dict[str, ArtifactRef]], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    give_artifacts("preferences")
    config, store = in_rounds(tiny_config, lora_rank=2), open_store(tiny_runtime)
    refs = run(config, tiny_runtime)
    first, second = (store.read_table(refs[f"sample-round{n}"], "images") for n in (1, 2))
    assert len(first) == len(second) == 10
    assert not set(first["seed"]) & set(second["seed"])
    assert store.manifest(refs["sample-round2"]).payload["inputs"]["model"] == refs["train-round1"].key
    # an adapter alone, with what the next round needs; the last round has no next one
    assert [name for name in content(store, refs["train"]) if name.endswith("safetensors")] == [
        "lora/pytorch_lora_weights.safetensors"
    ]
    assert [name for name in content(store, refs["train-round1"]) if name.endswith("safetensors")] == [
        "lora/pytorch_lora_weights.safetensors",
        "state.safetensors",
    ]
    with safe_open(store.localize(refs["train-round1"], "state.safetensors"), framework="pt") as state:
        assert all("lora" in name for name in state.keys() if name.startswith("weights/"))  # noqa: SIM118
    before, after = (
        load_file(store.localize(refs[node], "lora/pytorch_lora_weights.safetensors"))
        for node in ("train-round1", "train")
    )
    assert any(not before[name].equal(after[name]) for name in before)
    log = store.read_table(refs["train"], "training_log").pivot(index="step", columns="name", values="value")
    assert log["learning_rate"].dropna().tolist() == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert list(log["round/discrepancy_per_prompt/gender"].dropna().index) == [0, 2]
    assert [model.trained for model in find_checkpoints(None, tiny_runtime)] == [refs["train"]]
    assert all(node.is_hit for node in plan_run(config, tiny_runtime, target="train"))


@pytest.mark.parametrize("changes", [{"objective": "dgpo"}, {"objective": "popalign", "beta": 3}], ids=str)
def test_other_objectives_train_in_rounds(
    give_artifacts: Callable[[str], dict[str, ArtifactRef]],
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    changes: dict[str, Any],
) -> None:
    give_artifacts("preferences")
    refs = run(in_rounds(tiny_config, **changes), tiny_runtime)
    log = open_store(tiny_runtime).read_table(refs["train"], "training_log")
    assert log.loc[log["name"] == "loss", "step"].tolist() == [1, 2, 3, 4]
    assert np.isfinite(log["value"]).all()
    if changes["objective"] == "popalign":  # the policy that began the round is its reference
        assert log.loc[(log["name"] == "g_spread") & log["step"].isin([1, 3]), "value"].tolist() == [0.0, 0.0]


def test_ratio_matching_knows_what_the_base_samples(
    give_artifacts: Callable[[str], dict[str, ArtifactRef]], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """Offline: one training, without rounds."""
    give_artifacts("preferences")
    config = in_rounds(tiny_config, objective="ratio-matching", rounds=1)
    assert pipeline_steps(config) == PIPELINE
    log = open_store(tiny_runtime).read_table(run(config, tiny_runtime)["train"], "training_log")
    # at the first step g is 0: the loss is the mean square of differences of log-ratios, of log(pi/rho) within +-2
    first = log.loc[(log["name"] == "loss") & (log["step"] == 1), "value"].iloc[0]
    assert 0 <= first <= 16


def test_workers_and_batches_change_no_image_and_no_class(
    give_artifacts: Callable[[str], dict[str, ArtifactRef]], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """Two workers, other batches and shards: the same bits, for a round fixes the shape of its batches."""
    give_artifacts("preferences")
    config, store = in_rounds(tiny_config, rounds=1), open_store(tiny_runtime)
    one = run(config, tiny_runtime)
    changes = {"runner": "threads", "n_workers": 2, "batch_size": 2, "shard_size": 3, "n_threads": 1}
    found = [content(store, one[node]) for node in NODES[:2]]
    for node in ("sample-round1", "attributes-round1", "train"):
        store.bump(one[node].stage, one[node].key)
    other = run(config, RuntimeConfig.model_validate({**tiny_runtime.model_dump(), **changes}))
    again = [content(store, other[node]) for node in NODES[:2]]
    assert [each.ref for each in plan_run(config, tiny_runtime, target="train")][-1] == other["train"]
    latents = [name for name in found[0] if name.startswith("latents")]
    assert len(latents) == 1
    assert found[0][latents[0]] == again[0][latents[0]]
    tables = [store.read_table(refs["attributes-round1"], "attributes") for refs in (one, other)]
    assert tables[0]["class"].tolist() == tables[1]["class"].tolist()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_run_killed_at_many_moments_ends_with_the_same_bytes(
    give_artifacts: Callable[[str], dict[str, ArtifactRef]],
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
) -> None:
    give_artifacts("preferences")
    # one thread: OpenMP's pool does not live on in a fork, and the child would wait for it for ever
    runtime = tiny_runtime.model_copy(update={"n_threads": 1})
    config = in_rounds(tiny_config, n_steps=3, checkpoint_every=1)
    rng, n_kills = np.random.default_rng(1), 0
    while not run_and_die(partial(run, config, runtime), int(rng.integers(2, 9))):
        n_kills += 1
        assert n_kills < 60, "no progress between kills"
    assert n_kills >= 4
    killed, store = run(config, runtime), open_store(runtime)
    found = {node: content(store, killed[node]) for node in NODES}
    for node in NODES:
        store.bump(killed[node].stage, killed[node].key)
    whole = run(config, runtime)
    # what holds the keys of the inputs, which are other versions', is compared by its weights and numbers
    weights = {node: {n: b for n, b in found[node].items() if "safetensors" in n or "log" in n} for node in NODES}
    for node in ("train-round1", "train"):
        again = content(store, whole[node])
        assert {name: again[name] == data for name, data in weights[node].items()} == dict.fromkeys(weights[node], True)
    for node in ("sample-round1", "sample-round2"):
        again = content(store, whole[node])
        latents = [name for name in again if name.startswith("latents")]
        assert [again[name] == found[node][name] for name in latents] == [True] * len(latents)


def test_systems_train_in_rounds_and_start_from_others(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    document = tiny_config.model_dump(exclude_none=True)
    document["systems"] = {
        "policy": {"training": ROUNDS},
        "dpo+policy": {"training": ROUNDS, "start": "dpo"},
    }
    config = parse_config(document)
    nodes = {
        node.node: dict(node.step.inputs)
        for node in plan_systems(["policy", "dpo+policy"], config, tiny_runtime).planned
    }
    assert nodes["sample-round1:policy"].keys() == {"prompts"}
    assert nodes["train:policy"]["before"] == "train-round1:policy"
    assert nodes["sample-eval:policy"]["model"] == "train:policy"
    # the same start and reference in every round; what is sampled comes from the latest
    assert nodes["sample-round1:dpo+policy"]["model"] == nodes["train-round1:dpo+policy"]["start"] == "train:dpo"
    assert nodes["sample-round2:dpo+policy"]["model"] == "train-round1:dpo+policy"
    assert nodes["train:dpo+policy"]["start"] == "train:dpo"


def test_replicates_sample_other_images(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    document = tiny_config.model_dump(exclude_none=True) | {"systems": {"policy": {"training": ROUNDS}}}
    planned = plan_systems(["policy"], parse_config(document), tiny_runtime, n_seeds=2).planned
    refs = {node.node: node.ref for node in planned}
    assert refs["sample-round1:policy"] != refs["sample-round1:policy@1"]
    assert "sample:policy@1" not in refs  # the preference data are shared


def test_a_round_can_be_asked_for(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    config = in_rounds(tiny_config)
    ref = run_stage("sample-round1", config, tiny_runtime, call=call_directly())
    assert {node.node for node in plan_run(config, tiny_runtime) if node.is_hit} == {
        "prompts",
        "identities",
        "sample-round1",
    }
    assert len(open_store(tiny_runtime).read_table(ref, "images")) == 10
    with pytest.raises(ConfigError, match="there is no stage 'sample-round3'"):
        run_stage("sample-round3", config, tiny_runtime, call=call_directly())


def test_pairs_made_elsewhere_have_no_rounds(tiny_config: PipelineConfig) -> None:
    pairs = ArtifactRef("pairs", "pairs-key")
    with pytest.raises(ConfigError, match=r"'population-policy' with rounds 2 trains on images that the model samples"):
        train_model.request(in_rounds(tiny_config), preferences=pairs, sample=pairs)
    assert TrainView.of(in_rounds(tiny_config), {}, number=2).last_step == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "sft", "rounds": 2}, "rounds is 2, but 'sft' learns from the base model's images alone; set"),
        ({"objective": "ratio-matching", "rounds": 2}, "'ratio-matching' learns from the base"),
        ({"objective": "popalign", "normaliser": "anchor", "rounds": 2}, "normaliser is 'anchor'"),
        ({"objective": "dgpo", "pairs_per_set": 16}, "takes 32 images of a prompt, and a round samples .* 16"),
        ({"objective": "dgpo", "beta": "auto"}, "beta is 'auto'.* 'dgpo' has a scale of its own; give a number"),
        ({"objective": "dgpo", "preserve_preferred": True}, "which 'dgpo' does not have"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingConfig.model_validate({"n_pairs": 32, **changes})
