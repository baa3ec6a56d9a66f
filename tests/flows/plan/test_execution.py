"""What is ready runs side by side: in any order that the inputs allow, and with the same artifacts."""

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.plan.compare_systems import plan_systems
from flows.plan.execution import call_directly, make, parallel_nodes, run_nodes, run_plan
from flows.plan.planning import PlannedNode, plan_run
from flows.plan.steps import Step
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import DivergedError, InputError
from storage.store import ArtifactRef
from tasks.stages.prompts import write_prompts

RUNTIME = RuntimeConfig(device="cpu")


def node(name: str, *inputs: str) -> PlannedNode:
    step = Step(name, write_prompts, {f"input {n}": each for n, each in enumerate(inputs)})
    return PlannedNode(step, ArtifactRef("stage", name), is_hit=False)


@st.composite
def graphs(draw: st.DrawFn) -> list[PlannedNode]:
    found = list[PlannedNode]()
    for n in range(draw(st.integers(1, 12))):
        inputs = draw(st.lists(st.sampled_from([each.node for each in found]), unique=True)) if found else []
        found.append(node(f"node-{n}", *inputs))
    return found


@given(graphs(), st.integers(1, 4), st.sets(st.integers(0, 11), max_size=2))
@settings(max_examples=100, deadline=None)
def test_every_node_runs_once_after_its_inputs_and_the_lost_cost_only_what_needs_them(
    nodes: list[PlannedNode], n_parallel: int, diverging: set[int]
) -> None:
    bad = {f"node-{n}" for n in diverging}
    done, lock = list[str](), threading.Lock()

    def call(each: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        with lock:
            assert set(each.step.inputs.values()) <= set(done)
            assert each.node not in done
        if each.node in bad:
            raise DivergedError(each.node)
        with lock:
            done.append(each.node)
        return each.ref

    failed = run_nodes(nodes, RUNTIME.model_copy(update={"n_parallel": n_parallel}), call, (DivergedError,))
    lost = set[str]()
    for each in nodes:
        if each.node in bad or lost & set(each.step.inputs.values()):
            lost.add(each.node)
    assert set(failed) == lost
    assert sorted(done) == sorted(each.node for each in nodes if each.node not in lost)


def test_an_error_ends_the_run_once_what_is_under_way_has_ended() -> None:
    ended = list[str]()

    def call(each: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        if each.node == "fails":
            time.sleep(0.05)
            raise InputError("no image")
        time.sleep(0.3)
        ended.append(each.node)
        return each.ref

    nodes = [node("fails"), node("long"), node("after", "long"), node("needs-it", "fails")]
    with pytest.raises(InputError, match="no image"):
        run_nodes(nodes, RUNTIME.model_copy(update={"n_parallel": 2}), call)
    assert ended == ["long"]


def test_an_interrupt_is_not_waited_for() -> None:
    def call(each: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(30)
        return each.ref

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_nodes([node("a"), node("b")], RUNTIME.model_copy(update={"n_parallel": 2}), call)
    assert time.monotonic() - start < 10


def test_each_gpu_takes_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    seen, barrier = set[str](), threading.Barrier(3)

    def call(each: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        barrier.wait(timeout=20)
        seen.add(runtime.device)
        return each.ref

    run_nodes([node("a"), node("b"), node("c")], RuntimeConfig(), call)
    assert seen == {"cuda:0", "cuda:1", "cuda:2"}
    assert parallel_nodes(RuntimeConfig(device="cuda:1")) == 1
    assert parallel_nodes(RuntimeConfig(runner="processes", n_workers=3)) == 1  # whose workers take them
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert parallel_nodes(RuntimeConfig()) == 1


def test_base_evaluation_beside_training_takes_less_time(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """On a machine where stages wait, for a GPU or a disk; here they sleep as long as they would work."""
    seconds = {"train": 1.0, "sample": 0.4, "attributes": 0.2, "scores": 0.2}

    def call(each: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        time.sleep(seconds.get(each.step.stage.name, 0.0))
        return each.ref

    took = []
    for n_parallel in (1, 2):
        runtime = tiny_runtime.model_copy(update={"n_parallel": n_parallel})
        start = time.monotonic()
        run_plan(plan_run(tiny_config, runtime), runtime, call)
        took.append(time.monotonic() - start)
    assert took[1] <= 0.8 * took[0]


def _bytes_of(root: str) -> dict[str, bytes]:
    found = (path for path in Path(root).rglob("*") if path.suffix in (".parquet", ".safetensors", ".html"))
    return {str(path.relative_to(root)): path.read_bytes() for path in found if "/." not in str(path)}


@pytest.mark.usefixtures("finished")
def test_stages_in_processes_side_by_side_make_the_same_artifacts(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """Two trainings of adapters, which draw their first weights from torch's own generator, and images beside them."""
    training = tiny_config.training.model_copy(update={"lora_rank": 2})
    config = tiny_config.model_copy(update={"training": training})
    found = []
    for n_parallel in (1, 3):
        root = tmp_path / f"side-by-side-{n_parallel}"
        shutil.copytree(tiny_runtime.root, root)
        runtime = tiny_runtime.model_copy(update={"n_parallel": n_parallel, "root": str(root), "n_threads": 1})
        planned = plan_systems(["sft", "popalign", "cads"], config, runtime, scale=0.5).planned
        wanted = [each for each in planned if each.node.startswith("train") or each.node == "sample-eval:cads"]
        assert len([each for each in wanted if not each.is_hit]) == 3
        seen = list[str]()
        failed = run_nodes(wanted, runtime, call_directly(lambda name, done, total, seen=seen: seen.append(name)))
        assert (failed, len(set(seen))) == ({}, len([each for each in wanted if not each.is_hit]))
        found.append(_bytes_of(str(root)))
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []


def test_a_stage_is_made_once_however_many_wait_for_it(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    made = list[str]()

    def call(each: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        made.append(each.node)
        return make(each, runtime)

    runtime = tiny_runtime.model_copy(update={"n_parallel": 2})
    planned = plan_run(tiny_config, runtime)
    stages: list[Any] = [replace(each) for each in planned if each.node in ("prompts", "identities", "benchmarks")]
    run_nodes(stages, runtime, call)
    assert sorted(made) == sorted(each.node for each in stages)
    assert all(each.is_hit for each in plan_run(tiny_config, runtime) if each.node in made)
