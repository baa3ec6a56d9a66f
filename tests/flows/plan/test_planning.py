"""The plan: all keys without running anything, hits and misses, work, and no torch."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flows.plan.execution import call_directly, run_plan
from flows.plan.expected_work import expected_work
from flows.plan.planning import plan_keys, plan_run
from flows.plan.steps import PIPELINE, Step, needed_for
from popalign_core.config import PipelineConfig, RuntimeConfig, SamplingConfig
from popalign_core.config.presets import preset
from popalign_core.errors import ConfigError, StoreError
from tasks.common.stage_object import open_store
from tasks.stages.attributes import read_attributes
from tasks.stages.comparison import compare_statistics
from tasks.stages.sample import list_images, n_images

NODES = [
    *("prompts", "identities", "sample", "attributes", "calibration", "preferences", "train"),
    *("sample-eval:base", "attributes-eval:base", "scores:base", "evaluate:base"),
    *("sample-eval:aligned", "attributes-eval:aligned", "scores:aligned", "evaluate:aligned"),
    "report",
]


def test_the_plan_lists_every_node_in_order(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    nodes = plan_run(tiny_config, tiny_runtime)
    assert [node.node for node in nodes] == NODES
    assert not any(node.is_hit for node in nodes)
    assert len({node.ref for node in nodes}) == len(nodes)


def test_the_work_is_estimated(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    work = {node.node: (node.n_images, node.n_steps) for node in plan_run(tiny_config, tiny_runtime)}
    assert work["prompts"] == (0, 0)
    assert work["attributes"] == (2 * (6 + 2 * 6), 0)
    assert work["sample"] == (2 * (6 + 2 * 6) + 1 * 4, 0)
    assert work["train"] == (0, 4)
    assert work["sample-eval:base"] == work["scores:aligned"] == (2 * (6 + 2 * 3) + 2 * 2, 0)
    assert work["attributes-eval:base"] == (2 * (6 + 2 * 3), 0)


def test_the_work_of_a_preset_is_known_without_weights() -> None:
    """sdxl: 300 x (100 + 12 x 10), and twice 100 x (100 + 12 x 10) + 60 x 3. sdxl-trial: 24 x (24 + 12 x 2), and twice
    16 x (40 + 12) + 20."""
    assert expected_work(preset("sdxl")) == (66_000 + 2 * 22_180, 750) == (110_360, 750)
    assert expected_work(preset("sdxl-trial")) == (1152 + 2 * 852, 250) == (2856, 250)


def test_prompts_of_lists_are_counted_too(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    (tmp_path / "things.txt").write_text("a tree\na house\na boat\n")
    more = {"eval_lists": ("couples",), "generic_lists": (str(tmp_path / "things.txt"),), "one_person": False}
    listed = tiny_config.model_copy(update={"prompts": tiny_config.prompts.model_copy(update=more)})
    images = [
        {node.node: node.n_images for node in plan_run(config, tiny_runtime)}["sample-eval:base"]
        for config in (tiny_config, listed)
    ]
    counts = tiny_config.evaluation
    assert images[1] - images[0] == 40 * (counts.n_neutral + 2 * counts.n_specific) + 3 * counts.n_generic


def test_images_of_benchmarks_are_counted_too(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    benchmarks = {
        "descriptor": {"n_images": 2},
        "asked": {"list": "ages", "kind": "specific", "n_prompts": 5},
        "as-is": {"list": "couples", "kind": "generic", "n_images": 1},
    }
    document = tiny_config.model_dump(exclude_none=True)
    document["prompts"]["benchmarks"] = benchmarks
    more = PipelineConfig.model_validate(document)
    images = [{node.node: node.n_images for node in plan_run(config, tiny_runtime)} for config in (tiny_config, more)]
    named = 40 * 2 + 5 * 2 * tiny_config.evaluation.n_specific
    assert images[1]["sample"] == images[0]["sample"]
    assert images[1]["sample-eval:base"] - images[0]["sample-eval:base"] == named + 40
    assert images[1]["attributes-eval:base"] - images[0]["attributes-eval:base"] == named
    refs = run_plan(plan_run(more, tiny_runtime, needed_for("benchmarks")), tiny_runtime, call_directly())
    prompts = open_store(tiny_runtime).read_table(refs["benchmarks"], "prompts")
    drawn = list_images(prompts[prompts["split"] == "eval"], n_images(more, "evaluation"), "key", more.sampling)
    assert len(drawn) == images[1]["sample-eval:base"]


def test_another_benchmark_changes_nothing_that_is_trained(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """Nor does an axis that is measured there alone."""
    document = tiny_config.model_dump(exclude_none=True)
    document["axes"] = [*document["axes"], "age"]
    document["prompts"]["benchmarks"] = {"age": {}}
    more = PipelineConfig.model_validate(document)
    refs = [
        {node.node: node.ref for node in plan_keys(config, tiny_runtime, PIPELINE)} for config in (tiny_config, more)
    ]
    assert "benchmarks" not in refs[0]
    assert refs[1]["benchmarks"].stage == "benchmarks"
    trained = ("prompts", "identities", "sample", "attributes", "calibration", "preferences", "train")
    assert all(refs[0][node] == refs[1][node] for node in trained)
    assert all(refs[0][node] != refs[1][node] for node in refs[0] if node not in trained)


def test_planned_keys_are_the_ones_a_run_publishes(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    planned = {node.node: node.ref for node in plan_run(tiny_config, tiny_runtime)}
    refs = run_plan(plan_run(tiny_config, tiny_runtime, needed_for("preferences")), tiny_runtime, call_directly())
    made = ["prompts", "identities", "sample", "attributes", "preferences"]
    assert refs == {node: planned[node] for node in made}
    assert [node.node for node in plan_run(tiny_config, tiny_runtime) if node.is_hit] == made


def test_a_node_brings_what_it_needs_and_nothing_else() -> None:
    calibrated = ["prompts", "identities", "benchmarks", "sample", "attributes", "calibration"]
    assert [step.node for step in needed_for("evaluate:base")] == [*calibrated, *NODES[7:11]]
    assert [step.node for step in needed_for("scores:base")] == [
        "prompts",
        "identities",
        "benchmarks",
        "sample-eval:base",
        "scores:base",
    ]
    assert [step.node for step in needed_for("report") if step.node != "benchmarks"] == NODES


def test_an_unknown_node_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match=r"no stage 'trian'; did you mean 'train'.* Or choose from prompts, identities"
    ):
        needed_for("trian")


def test_the_base_and_the_aligned_model_are_measured_alike() -> None:
    by_node = {step.node: step for step in PIPELINE}
    for part in ("attributes-eval", "scores", "evaluate"):
        assert by_node[f"{part}:base"].stage is by_node[f"{part}:aligned"].stage
    assert dict(by_node["sample-eval:aligned"].inputs) == {"prompts": "benchmarks", "model": "train"}


def test_steps_of_equal_outcome_become_one(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    first = [step for step in PIPELINE[:4] if step.node != "benchmarks"]
    again = [
        replace(step, node=f"{step.node}:again", inputs={part: f"{node}:again" for part, node in step.inputs.items()})
        for step in first
    ]
    other = tiny_config.model_copy(update={"sampling": SamplingConfig(n_steps=3)})
    read = {"prompts": "identities:again", "sample": "sample:again"}
    taken = {"prompts": "identities:again", "sample:a@0": "other", "sample:b@0": "sample:again", "second:b@0": "read"}
    options = {"systems": ("a", "b"), "n_seeds": 1, "scale": 1.0}
    steps = (
        *first,
        *again,
        replace(again[2], node="other", config=other),
        Step("read", read_attributes, read),
        Step("unread", read_attributes, {"prompts": "identities", "sample": "other"}),
        Step("all", compare_statistics, taken, options),
    )
    merged = plan_run(tiny_config, tiny_runtime, steps, target="all")
    assert [node.node for node in merged] == ["prompts", "identities", "sample", "other", "read", "all"]
    assert dict(merged[3].step.inputs) == {"prompts": "identities"}
    assert dict(merged[5].step.inputs) == taken | {"prompts": "identities", "sample:b@0": "sample"}
    assert merged[2].ref != merged[3].ref


def test_planning_and_hits_import_neither_torch_nor_prefect() -> None:
    heavy = ("torch", "prefect", "diffusers")
    flows = "flows.plan.runs, flows.plan.checkpoints, flows.plan.compare_systems, flows.plan.costs"
    code = f"import sys, {flows}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_a_target_does_not_need_is_neither_looked_at_nor_checked(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """A comparison without trained systems may have settings that training would refuse, and a damaged training."""
    refused = tiny_config.training.model_copy(update={"min_timestep": 1000})
    config = tiny_config.model_copy(update={"training": refused})
    with pytest.raises(ConfigError, match="min_timestep reaches 1000"):
        plan_run(config, tiny_runtime)
    assert "train" not in {node.node for node in plan_run(config, tiny_runtime, target="evaluate:base")}
    ref = {node.node: node.ref for node in plan_run(tiny_config, tiny_runtime)}["calibration"]
    damaged = Path(tiny_runtime.root) / ref.stage / ref.key
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="manifest"):
        plan_run(tiny_config, tiny_runtime)
    assert "calibration" not in {node.node for node in plan_run(tiny_config, tiny_runtime, target="train")}
    anew = plan_run(tiny_config, tiny_runtime, forced="calibration")
    assert {node.node: node.ref for node in anew}["calibration"] != ref
