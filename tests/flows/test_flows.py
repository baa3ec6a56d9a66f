"""The flows on tiny models, against a temporary Prefect database."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import ArtifactSort
from starlette.testclient import TestClient

from flows.compare import popalign_compare
from flows.evaluate import popalign_evaluate
from flows.pages.pages_app import make_pages_app
from flows.pipeline import popalign
from flows.review.server_settings import ReviewSettings
from flows.stage import popalign_stage
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError
from storage.readable_runs import ReadableRuns
from tasks.common.stage_object import open_store
from tasks.publishing.leaderboard import read_leaderboard


def artifacts() -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(sort=ArtifactSort.UPDATED_DESC, limit=100)
    return {artifact.key: artifact for artifact in reversed(found)}


def check_report_opens(link: Any, runtime: RuntimeConfig, name: str) -> None:
    """The link of an artifact leads to the report, once the command runs that stands beside it."""
    address = f"http://127.0.0.1:8710/runs/{name}/report.html"
    assert link.data == f"[Report]({address})"
    assert link.description == f"`popalign serve --root {runtime.root}` shows it."
    with TestClient(make_pages_app(ReadableRuns(runtime.root), ReviewSettings(port=8710))) as browser:
        assert browser.get(address).content == (Path(runtime.root) / "runs" / name / "report.html").read_bytes()


@pytest.mark.usefixtures("prefect_database")
def test_the_pipeline_flow_runs_each_stage_as_a_task_and_shows_its_results(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    refs = popalign(config=tiny_config, runtime=tiny_runtime, name="tiny")
    shown = artifacts()
    verdict, table = shown["metrics-tiny"].data.split("\n| benchmark |")
    assert "| neutral | discrepancy_pooled | gender |" in table
    assert verdict.startswith("**")
    assert verdict in (Path(tiny_runtime.root) / "runs" / "tiny" / "report.md").read_text(encoding="utf-8")
    assert shown["grid-tiny"].data.startswith("data:image/png;base64,")
    check_report_opens(shown["report-tiny"], tiny_runtime, "tiny")
    assert shown["progress-sample"].data == 100.0
    assert shown["progress-train"].data == 100.0
    # one stage from cache: nothing but the stage itself is made
    before = set(open_store(tiny_runtime).list_artifacts())
    ref = popalign_stage(node="evaluate:aligned", config=tiny_config, runtime=tiny_runtime, force=True)
    assert set(open_store(tiny_runtime).list_artifacts()) - before == {ref}
    assert ref != refs["evaluate:aligned"]


@pytest.mark.usefixtures("prefect_database")
def test_the_evaluation_flow_does_nothing_when_nothing_is_new(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tiny_weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_weights / "pipeline", tmp_path / "watch" / "step-100")
    arguments = {"watch": str(tmp_path / "watch"), "config": tiny_config, "runtime": tiny_runtime}
    assert popalign_evaluate(**arguments) == ["step-100"]
    n_rows = len(read_leaderboard(tiny_runtime.root))
    assert popalign_evaluate(**arguments) == []
    assert len(read_leaderboard(tiny_runtime.root)) == n_rows
    assert "step-100" in artifacts()["leaderboard"].data


@pytest.mark.usefixtures("prefect_database", "finished")
def test_the_comparison_flow_trains_what_it_needs_and_shows_its_table(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    systems = ("base", "sft", "cads")
    ref = popalign_compare(systems, config=tiny_config, runtime=tiny_runtime, name="side_by.side", scale=0.5)
    shown = artifacts()
    verdict, table = shown["comparison-side-by-side"].data.split("\n| benchmark |")
    assert table.startswith(" metric | axis | base | sft | cads |")
    assert verdict.startswith("**")
    assert verdict in (Path(tiny_runtime.root) / "runs" / "side_by.side" / "card.md").read_text(encoding="utf-8")
    check_report_opens(shown["report-side-by-side"], tiny_runtime, "side_by.side")
    assert shown["progress-train-sft"].data == 100.0
    assert set(open_store(tiny_runtime).read_table(ref, "comparison")["system"]) == {"sft", "cads"}


@pytest.mark.usefixtures("prefect_database", "finished")
def test_flows_replace_no_run_of_another_configuration_unless_they_are_told_to(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    other = tiny_config.model_copy(update={"training": tiny_config.training.model_copy(update={"seed": 99})})
    record = Path(tiny_runtime.root) / "runs" / "run" / "run.json"
    before, there = record.read_bytes(), open_store(tiny_runtime).list_artifacts()
    with pytest.raises(ConfigError, match=r"differs in training.*name and replace=true in a flow"):
        popalign(config=other, runtime=tiny_runtime, name="run")
    assert (record.read_bytes(), open_store(tiny_runtime).list_artifacts()) == (before, there)
    popalign(config=tiny_config, runtime=tiny_runtime, name="run")  # as a schedule does
    assert record.read_bytes() == before
    popalign(config=other, runtime=tiny_runtime, name="run", replace=True)
    assert record.read_bytes() != before

    popalign_compare(("base", "cads"), config=tiny_config, runtime=tiny_runtime, name="two", scale=0.5)
    popalign_compare(("base", "cads"), config=tiny_config, runtime=tiny_runtime, name="two", scale=0.5)
    with pytest.raises(ConfigError, match="differs in systems compared"):
        popalign_compare(("base", "dynamic-cfg"), config=tiny_config, runtime=tiny_runtime, name="two", scale=0.5)


def test_deployments_replace_the_run_of_their_name() -> None:
    project = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text(encoding="utf-8"))
    named = {each["name"]: each["parameters"] for each in project["deployments"] if "name" in each["parameters"]}
    assert {name: parameters["replace"] for name, parameters in named.items()} == {
        "full-pipeline": True,
        "systems": True,
    }
