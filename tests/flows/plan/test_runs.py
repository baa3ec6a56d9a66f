"""The whole pipeline on tiny models, without Prefect: results, hits, one stage alone, a forced new version."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.plan.execution import call_directly
from flows.plan.planning import plan_run
from flows.plan.runs import run_pipeline, run_stage
from flows.plan.steps import PIPELINE
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import StoreError
from tasks.common.stage_object import Stage, open_store


def test_a_run_ends_with_its_folder_and_the_next_is_all_hits(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    seen: list[tuple[str, int, int]] = []
    call = call_directly(lambda node, done, total: seen.append((node, done, total)))
    refs = run_pipeline(tiny_config, tiny_runtime, "first", call=call)
    folder = Path(tiny_runtime.root) / "runs" / "first"
    rows = json.loads((folder / "metrics.json").read_text())
    assert {row["system"] for row in rows} == {"base", "aligned"}
    assert len(rows) == len(pd.read_parquet(folder / "metrics.parquet"))
    assert (folder / "model" / "model_index.json").is_file()
    page = (folder / "report.html").read_text()
    assert (folder / "report.md").read_text().startswith("## PopAlign report")
    assert "popalign run --config FILE" in page
    assert "denoiser steps (steps)" in page
    assert "a photo of a judge" in page
    assert page.count("data:image/png") == 2 * (2 * 6 + 3 * 3 + 2 * 2)
    comparison = open_store(tiny_runtime).read_table(refs["report"], "comparison")
    assert set(comparison["system"]) == {"aligned"}
    assert set(comparison["reference"]) == {"base"}
    recorded = json.loads((folder / "run.json").read_text())["artifacts"]
    assert sorted(map(tuple, recorded)) == sorted({(ref.stage, ref.key) for ref in refs.values()})
    assert seen[-1][0] == "report"
    seen.clear()
    assert run_pipeline(tiny_config, tiny_runtime, "first", call=call) == refs
    assert seen == []
    assert all(node.is_hit for node in plan_run(tiny_config, tiny_runtime))


def test_an_adapter_lies_beside_the_model_until_a_run_without_one(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, finished: None
) -> None:
    folder = Path(tiny_runtime.root) / "runs" / "first"
    adapted = tiny_config.training.model_copy(update={"lora_rank": 2, "n_steps": 1})
    for training, expected in ((adapted, ["pytorch_lora_weights.safetensors"]), (tiny_config.training, [])):
        config = tiny_config.model_copy(update={"training": training})
        run_pipeline(config, tiny_runtime, "first", call=call_directly(), replace=True)
        assert [path.name for path in folder.glob("lora/*")] == expected
        assert (folder / "model" / "model_index.json").is_file()


def test_a_forced_stage_gets_a_new_version_and_the_old_one_stays(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    call = call_directly()
    first = run_stage("identities", tiny_config, tiny_runtime, call=call)
    assert run_stage("identities", tiny_config, tiny_runtime, call=call) == first
    second = run_stage("identities", tiny_config, tiny_runtime, call=call, force=True)
    third = run_stage("identities", tiny_config, tiny_runtime, call=call, force=True)
    assert len({first.key, second.key, third.key}) == 3
    store = open_store(tiny_runtime)
    assert all(store.is_published(ref) for ref in (first, second, third))
    assert run_stage("identities", tiny_config, tiny_runtime, call=call) == third


def test_force_on_a_stage_that_was_never_run_just_runs_it(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    planned = plan_run(tiny_config, tiny_runtime)[0].ref
    assert run_stage("prompts", tiny_config, tiny_runtime, call=call_directly(), force=True) == planned


def test_only_the_node_and_what_it_needs_is_run(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage("sample-eval:base", tiny_config, tiny_runtime, call=call_directly())
    hits = {node.node for node in plan_run(tiny_config, tiny_runtime) if node.is_hit}
    assert hits == {"prompts", "identities", "sample-eval:base"}


def test_force_replaces_a_damaged_artifact(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    call = call_directly()
    first = run_stage("prompts", tiny_config, tiny_runtime, call=call)
    (Path(tiny_runtime.root) / first.stage / first.key / "prompts.parquet").unlink()
    with pytest.raises(StoreError, match=r"prompts\.parquet"):
        run_stage("prompts", tiny_config, tiny_runtime, call=call)
    second = run_stage("prompts", tiny_config, tiny_runtime, call=call, force=True)
    assert second != first
    assert len(open_store(tiny_runtime).read_table(second, "prompts")) > 0


def test_the_calibration_is_made_of_the_training_images_and_corrects_both_systems(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, finished: None
) -> None:
    ref = run_stage("calibration", tiny_config, tiny_runtime, call=call_directly())
    table = open_store(tiny_runtime).read_table(ref, "calibration")
    assert set(table["axis"]) == {"gender"}
    # of 2 prompts, 2 classes and 6 images each, those with a readable face: the shares of each true class sum to 1
    read = table[table["read_class"] != ""]
    assert read.groupby("true_class")["share"].sum().round(9).to_dict() == {"female": 1.0, "male": 1.0}
    inputs = {step.node: dict(step.inputs) for step in PIPELINE}
    for system in ("base", "aligned"):
        assert inputs[f"evaluate:{system}"]["calibration"] == "calibration"


def test_a_run_makes_every_key_once(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are hashed for each key that needs them: of a large model that is work."""
    asked = Counter[str]()
    request = Stage.request

    def count(stage: Stage[Any], config: PipelineConfig, **arguments: Any) -> Any:
        asked[stage.name] += 1
        return request(stage, config, **arguments)

    monkeypatch.setattr(Stage, "request", count)
    run_pipeline(tiny_config, tiny_runtime, "first", call=call_directly())
    assert asked == Counter(step.stage.name for step in PIPELINE)
