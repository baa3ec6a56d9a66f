"""Sweeps: points as systems, what diverges told apart, a table and a page."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from flows.plan.execution import call_directly
from flows.plan.planning import PlannedNode
from flows.plan.sweep import plan_sweep, run_sweep
from flows.terminal.options import parse_sweep
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError, DivergedError, TrainingError
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.stages.train import train_model


def read(runtime: RuntimeConfig, ref: ArtifactRef, table: str) -> pd.DataFrame:
    return open_store(runtime).read_table(ref, table)


def test_sampling_is_swept_without_training_and_read_from_the_store_again(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    parameters = {"sampling.guidance_scale": [1.0, 2.5, 6.5], "sampling.n_steps": [3]}
    ref = run_sweep(plan_sweep(parameters, tiny_config, tiny_runtime), tiny_runtime, "swept", call=call_directly())
    points = read(tiny_runtime, ref, "points")
    pooled = points[points["metric"] == "discrepancy_pooled"]
    assert list(zip(pooled["parameter"], pooled["value"], pooled["order"], strict=True)) == [
        ("sampling.guidance_scale", "1", 0),
        ("sampling.guidance_scale", "2.5", 1),
        ("sampling.guidance_scale", "6.5", 2),
        ("sampling.n_steps", "3", 0),
    ]
    assert pooled["estimate"].between(0, 0.71).all()
    assert set(points["system"]) == {"base"}
    front = read(tiny_runtime, ref, "front")
    assert len(front) == 4
    assert (front["dominated_by_value"] == "").any()
    folder = Path(tiny_runtime.root) / "runs" / "swept"
    page = (folder / "sampling.guidance_scale.html").read_text(encoding="utf-8")
    assert "PopAlign sweep of sampling.guidance_scale" in page
    assert {"sampling.n_steps.html", "points.csv", "points.json", "front.parquet"} <= {p.name for p in folder.iterdir()}
    assert "train" not in {artifact.stage for artifact in open_store(tiny_runtime).list_artifacts()}

    def no_sampling(node: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        assert node.is_hit
        return call_directly()(node, runtime)

    assert run_sweep(plan_sweep(parameters, tiny_config, tiny_runtime), tiny_runtime, "swept", call=no_sampling) == ref


@pytest.mark.usefixtures("finished")
def test_a_quick_look_says_so(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    parameters = {"sampling.n_steps": [2]}
    for scale, said in ((1.0, False), (0.5, True)):
        run_sweep(
            plan_sweep(parameters, tiny_config, tiny_runtime, scale=scale),
            tiny_runtime,
            "quick",
            call=call_directly(),
            replace=True,
        )
        page = (Path(tiny_runtime.root) / "runs" / "quick" / "sampling.n_steps.html").read_text(encoding="utf-8")
        assert ("Quick look: 50% of the images configured" in page) == said


@pytest.mark.usefixtures("finished")
def test_a_point_that_diverges_stays_in_the_table_with_the_reason(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    direct, n_diverged = call_directly(), 0

    def call(node: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        nonlocal n_diverged
        if node.step.stage is train_model and node.request.view.training.alpha == 0.25:
            n_diverged += 1
            raise DivergedError("the preferred error runs away at step 3")
        return direct(node, runtime)

    parameters = {"training.alpha": [0.25, 0.5]}
    ref = run_sweep(plan_sweep(parameters, tiny_config, tiny_runtime), tiny_runtime, "alpha", call=call)
    points = read(tiny_runtime, ref, "points")
    lost, kept = (points[points["value"] == value] for value in ("0.25", "0.5"))
    assert len(lost) == len(kept) > 10
    assert lost["estimate"].isna().all()
    assert set(lost["note"]) == {"not measured: the preferred error runs away at step 3"}
    assert kept.loc[kept["metric"] == "recall", "estimate"].notna().all()
    page = (Path(tiny_runtime.root) / "runs" / "alpha" / "training.alpha.html").read_text(encoding="utf-8")
    assert "the preferred error runs away at step 3" in page
    assert run_sweep(plan_sweep(parameters, tiny_config, tiny_runtime), tiny_runtime, "alpha", call=call) == ref
    assert n_diverged == 1
    with pytest.raises(TrainingError, match="no point of the sweep can be trained; the first: the preferred error"):
        run_sweep(plan_sweep({"training.alpha": [0.25]}, tiny_config, tiny_runtime), tiny_runtime, "x", call=call)


def test_several_systems_and_seeds_share_what_they_have_in_common(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    planned = plan_sweep(
        {"sampling.n_steps": [2, 3], "sampling.seed": [1]},
        tiny_config,
        tiny_runtime,
        systems=["base", "aligned"],
        n_seeds=2,
    )
    nodes = [node.node for node in planned.systems.planned]
    # two steps and seed 1 are what the configuration has: one system each, under the first name
    assert [node for node in nodes if node.startswith(("sample-eval", "train"))] == [
        *("train", "sample-eval:base+sampling.n_steps=2", "sample-eval:base+sampling.n_steps=3"),
        *("sample-eval:aligned+sampling.n_steps=2", "sample-eval:aligned+sampling.n_steps=3"),
        *("sample-eval:base+sampling.n_steps=2@1", "sample-eval:base+sampling.n_steps=3@1"),
        "train:aligned+sampling.n_steps=2@1",
        *("sample-eval:aligned+sampling.n_steps=2@1", "sample-eval:aligned+sampling.n_steps=3@1"),
    ]
    assert len(planned.points) == 6


def test_fields_and_values_are_read_from_words() -> None:
    words = [
        "training.beta=10,20.5",
        "sampling.scheduler=ddim,euler",
        "sampling.guidance_interval=[0.3, 5.0], [1.0, 2.0]",
    ]
    assert parse_sweep(words) == {
        "training.beta": [10, 20.5],
        "sampling.scheduler": ["ddim", "euler"],
        "sampling.guidance_interval": [[0.3, 5.0], [1.0, 2.0]],
    }
    for wrong in (["training.beta"], ["training.beta="], ["training.beta=1", "training.beta=2"]):
        with pytest.raises(ConfigError, match="is not a sweep; write each field once, with its values"):
            parse_sweep(wrong)


def test_from_the_command_line(tmp_path: Path) -> None:
    command = ["sweep", "sampling.guidance_scale=1,3", "--preset", "smoke", "--root", str(tmp_path)]
    planned = CliRunner().invoke(app, [*command, "--plan"])
    assert planned.exit_code == 0, planned.output
    assert "sample-eval:base+sampling.guidance_scale=3     miss" in planned.stdout
    result = CliRunner().invoke(app, [*command, "--grid"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "pooled discrepancy, gender by sampling.guidance_scale"
    assert [line.split()[-5:-3] for line in lines[1:3]] == [["base", "1"], ["base", "3"]]
    assert f"Pages: {tmp_path}/runs/smoke-sweep/" in result.stdout
    wrong = CliRunner().invoke(app, ["sweep", "evaluation.seed=1", "--preset", "smoke", "--root", str(tmp_path)])
    assert (wrong.exit_code, "a sweep cannot vary 'evaluation.seed'" in wrong.stderr) == (2, True)
