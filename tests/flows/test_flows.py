"""The flows on tiny models, against a temporary Prefect database."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import ArtifactSort
from prefect.states import Failed
from starlette.testclient import TestClient

from flows import parameters
from flows.compare import popalign_compare
from flows.evaluate import popalign_evaluate
from flows.pages.pages_app import make_pages_app
from flows.pipeline import popalign
from flows.review.server_settings import ReviewSettings
from flows.stage import popalign_stage
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.presets import PRESETS
from popalign_core.errors import ConfigError, StoreError
from storage.readable_runs import ReadableRuns
from storage.roots import storage_errors
from tasks.common.stage_object import open_store
from tasks.prefect_tasks import TAG, TASKS, make_as_task, may_succeed_later
from tasks.publishing.leaderboard import read_leaderboard
from tasks.stages.prompts import write_prompts


def document(config: PipelineConfig) -> dict[str, Any]:
    """A configuration as a flow takes it."""
    return config.model_dump(mode="json", exclude_none=True)


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
    refs = popalign(config=document(tiny_config), runtime=tiny_runtime, name="tiny")
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
    ref = popalign_stage(node="evaluate:aligned", config=document(tiny_config), runtime=tiny_runtime, force=True)
    assert set(open_store(tiny_runtime).list_artifacts()) - before == {ref}
    assert ref != refs["evaluate:aligned"]


@pytest.mark.usefixtures("prefect_database")
def test_the_evaluation_flow_does_nothing_when_nothing_is_new(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tiny_weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_weights / "pipeline", tmp_path / "watch" / "step-100")
    arguments = {"watch": str(tmp_path / "watch"), "config": document(tiny_config), "runtime": tiny_runtime}
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
    ref = popalign_compare(systems, config=document(tiny_config), runtime=tiny_runtime, name="side_by.side", scale=0.5)
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
        popalign(config=document(other), runtime=tiny_runtime, name="run")
    assert (record.read_bytes(), open_store(tiny_runtime).list_artifacts()) == (before, there)
    popalign(config=document(tiny_config), runtime=tiny_runtime, name="run")  # as a schedule does
    assert record.read_bytes() == before
    popalign(config=document(other), runtime=tiny_runtime, name="run", replace=True)
    assert record.read_bytes() != before

    popalign_compare(("base", "cads"), config=document(tiny_config), runtime=tiny_runtime, name="two", scale=0.5)
    popalign_compare(("base", "cads"), config=document(tiny_config), runtime=tiny_runtime, name="two", scale=0.5)
    with pytest.raises(ConfigError, match="differs in systems compared"):
        popalign_compare(
            ("base", "dynamic-cfg"), config=document(tiny_config), runtime=tiny_runtime, name="two", scale=0.5
        )


def test_deployments_replace_the_run_of_their_name() -> None:
    project = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text(encoding="utf-8"))
    named = {each["name"]: each["parameters"] for each in project["deployments"] if "name" in each["parameters"]}
    assert {name: parameters["replace"] for name, parameters in named.items()} == {"systems": True}
    by_name = {each["name"]: each for each in project["deployments"]}
    assert by_name["full-pipeline"]["parameters"]["replace"] is True
    assert all(each["tags"] == [TAG] for each in by_name.values())


def test_a_form_of_a_deployment_is_small_and_offers_the_presets() -> None:
    assert get_args(parameters.PresetName) == tuple(PRESETS)
    for each in (popalign, popalign_stage, popalign_evaluate, popalign_compare):
        schema = each.parameters.model_dump()
        assert schema["properties"]["preset"]["enum"] == list(PRESETS)
        assert schema["properties"]["settings"]["anyOf"][0]["items"] == {"type": "string"}
        assert len(json.dumps(schema)) < 8000


def test_a_preset_with_settings_has_a_name_of_its_own() -> None:
    runtime = RuntimeConfig(root="here", batch_size=4)
    config, machine = parameters.choose_config("smoke", ["training.beta=7", "runtime.batch_size=8"], None, runtime)
    assert (config.training.beta, machine.batch_size, machine.root) == (7, 8, "here")
    assert config.prompts == PRESETS["smoke"]().prompts
    partial, _ = parameters.choose_config("portraits", None, {"preset": "smoke", "training": {"beta": 9}}, runtime)
    assert (partial.training.beta, partial.prompts) == (9, config.prompts)
    names = [
        parameters.choose_name("smoke", settings, given, None)
        for settings, given in ((None, None), (["training.beta=7"], None), (None, {"preset": "smoke", "axes": []}))
    ]
    assert names[0] == "smoke"
    assert len(set(names)) == 3
    assert all(name.startswith("smoke-") for name in names[1:])
    assert parameters.choose_name("smoke", ["training.beta=7"], None, "mine") == "mine"
    with pytest.raises(ConfigError, match="did you mean `beta`"):
        parameters.choose_config("smoke", ["training.betta=7"], None, runtime)


def test_only_what_may_pass_is_tried_again(tiny_runtime: RuntimeConfig) -> None:
    network, damaged = StoreError("timed out").passing(), StoreError("damaged")
    assert may_succeed_later(None, None, Failed(data=network))  # type: ignore[arg-type]
    for error in (damaged, ConfigError("beta"), ValueError("a bug")):
        assert not may_succeed_later(None, None, Failed(data=error))  # type: ignore[arg-type]
    backend = {
        ConnectionResetError(104, "reset"): True,
        TimeoutError("slow"): True,
        FileNotFoundError(2, "no bucket"): False,
        PermissionError(13, "denied"): False,
        OSError(28, "full"): False,
        KeyError("x"): False,
    }
    for error, may_pass in backend.items():
        with pytest.raises(StoreError) as caught, storage_errors("read"):
            raise error
        assert caught.value.may_pass == may_pass, error


@pytest.mark.usefixtures("prefect_database")
def test_a_stage_that_fails_on_the_network_is_tried_again_and_one_that_cannot_work_is_not(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [StoreError("no answer").passing(), StoreError("no answer").passing()]
    request = write_prompts.request(tiny_config)
    made = type(write_prompts).make

    def make(stage: Any, *arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return made(stage, *arguments)

    monkeypatch.setattr(type(write_prompts), "make", make)
    task = TASKS["prompts"].with_options(retry_delay_seconds=0)
    monkeypatch.setitem(TASKS, "prompts", task)
    ref = flow(lambda: make_as_task(request, tiny_runtime, "prompts"), name="retried")()
    assert (ref.stage, failures) == ("prompts", [])
    failures[:] = [ConfigError("never"), ConfigError("never")]
    with pytest.raises(ConfigError, match="never"):
        flow(lambda: make_as_task(request, tiny_runtime, "prompts"), name="not-retried")()
    assert len(failures) == 1
