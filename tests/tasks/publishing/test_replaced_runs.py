"""Runs are not replaced in silence, and what a command makes outside of a run is kept."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from flows.plan.execution import call_directly
from flows.plan.runs import run_pipeline, run_stage
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.presets import preset
from popalign_core.errors import ConfigError
from storage.store import ArtifactRef
from tasks.common.reservations import reserve_made
from tasks.common.stage_object import open_store
from tasks.publishing.finished_run import check_replaced


def record(runtime: RuntimeConfig, config: PipelineConfig, nodes: dict[str, str]) -> None:
    meta = {"nodes": nodes, "config": config.model_dump(mode="json")}
    open_store(runtime).run_folder("mine").record([], meta)


def changed(config: PipelineConfig) -> PipelineConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": 99})})


def test_a_finished_run_of_another_configuration_stays(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    check_replaced(tiny_config, tiny_runtime, "mine")
    record(tiny_runtime, tiny_config, {"comparison": "comparison/a"})
    check_replaced(tiny_config, tiny_runtime, "mine")
    check_replaced(tiny_config, tiny_runtime, "mine", ["comparison"])
    with pytest.raises(
        ConfigError, match=r"runs/mine holds a run of another .*differs in training\); give another --name"
    ):
        check_replaced(changed(tiny_config), tiny_runtime, "mine")
    with pytest.raises(ConfigError, match="differs in systems compared"):
        check_replaced(tiny_config, tiny_runtime, "mine", ["comparison", "train:sft"])


def test_a_run_is_refused_before_anything_is_made(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    record(tiny_runtime, tiny_config, {})

    def no_call(*_: Any) -> Any:
        raise AssertionError

    with pytest.raises(ConfigError, match="--replace to lose that run's report and model"):
        run_pipeline(changed(tiny_config), tiny_runtime, "mine", call=no_call, replace=False)
    assert open_store(tiny_runtime).list_artifacts() == []


def test_the_command_line_asks_for_replace(tmp_path: Path) -> None:
    words = ["--preset", "smoke", "--root", str(tmp_path), "--name", "mine", "--set", "training.seed=5"]
    record(RuntimeConfig(root=str(tmp_path)), preset("smoke"), {})
    result = CliRunner().invoke(app, ["run", *words])
    assert (result.exit_code, "holds a run of another configuration" in result.stderr) == (2, True), result.output
    result = CliRunner().invoke(app, ["compare", "base", "cads", *words])
    assert (result.exit_code, "holds a run of another configuration" in result.stderr) == (2, True), result.output


def test_garbage_collection_leaves_what_a_stage_makes(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    """gc runs at every sign of progress, as beside another process, and after the end."""
    store = open_store(tiny_runtime)

    def collect(node: str, done: int, total: int) -> None:
        assert open_store(tiny_runtime).collect_garbage(dry_run=False).artifacts == []

    ref = run_stage("identities", tiny_config, tiny_runtime, call=call_directly(collect))
    assert store.collect_garbage(dry_run=False).artifacts == []
    assert store.is_published(ref)
    (folder,) = (Path(tiny_runtime.root) / "runs").iterdir()
    assert folder.name.startswith("stage-identities-")
    # the next time it is all hits, and nothing is written
    before = sorted(Path(tiny_runtime.root).rglob("*.json"))
    run_stage("identities", tiny_config, tiny_runtime, call=call_directly())
    assert sorted(Path(tiny_runtime.root).rglob("*.json")) == before
    (folder / "reserved.json").unlink()
    assert ref in store.collect_garbage(dry_run=False).artifacts


def test_the_same_artifacts_are_kept_by_one_folder(tiny_runtime: RuntimeConfig) -> None:
    refs = [ArtifactRef("prompts", "prompts-v1-a"), ArtifactRef("train", "train-v1-b")]
    reserve_made(refs, tiny_runtime, "stage-evaluate:base")
    reserve_made(refs[::-1] + refs, tiny_runtime, "stage-evaluate:base")
    (folder,) = (Path(tiny_runtime.root) / "runs").iterdir()
    assert open_store(tiny_runtime).run_folder(folder.name).references() == set(refs)
