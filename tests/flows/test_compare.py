"""Systems side by side, on the same prompts and seeds, the trained model and imported images among them."""

from pathlib import Path
from typing import Any

import pytest
from pair_files import picture
from picture_files import write_csv
from typer.testing import CliRunner

from flows.cli import app
from flows.graph import call_directly
from flows.runs import compare_systems, import_pictures
from flows.tables import systems_lines
from popalign_core.config import PipelineConfig, RuntimeConfig, SystemConfig
from popalign_core.errors import ConfigError, InputError
from tasks.stage import open_store

NAMES = ["base", "cads", "aligned+cads", "elsewhere"]


@pytest.fixture
def config(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path) -> PipelineConfig:
    """With a system on the trained model and one whose pictures are imported."""
    texts = ("a photo of a judge", "a photo of a dancer", "a photo of a cat", "a photo of a male judge")
    rows: Any = [(text, picture(90, seed=10 * n + i)) for n, text in enumerate(texts) for i in range(4)]
    folder = write_csv(tmp_path / "pictures", rows)
    imported = import_pictures([folder], tiny_config, tiny_runtime, call=call_directly())["imported"]
    systems = {
        "aligned+cads": SystemConfig(aligned=True, sampling={"cads": {"tau1": 0.2}}),
        "elsewhere": SystemConfig(images=imported.key),
    }
    return tiny_config.model_copy(update={"systems": systems})


def test_every_kind_of_system_is_measured_once(config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    calls: list[str] = []
    direct = call_directly()

    def call(step: Any, arguments: dict[str, Any]) -> Any:
        calls.append(step.node)
        return direct(step, arguments)

    metrics = compare_systems(NAMES, config, tiny_runtime, "four", call=call)
    assert list(metrics["system"].unique()) == NAMES
    pooled = metrics[metrics["metric"] == "discrepancy_pooled"].set_index("system")
    assert pooled.loc["elsewhere", "n"] <= 8 < 12 == pooled.loc["base", "n"] + metrics_dropped(metrics, "base")
    assert [node for node in calls if node.startswith("sample")] == [
        "sample",
        "sample-eval:base",
        "sample-eval:cads",
        "sample-eval:aligned+cads",
    ]
    store = open_store(tiny_runtime)
    folder = Path(tiny_runtime.root) / "runs" / "four"
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.json",
        "metrics.parquet",
        "reserved.json",
        "run.json",
    ]
    # nothing of it is garbage, and a second time everything is a hit
    before = set(store.list_artifacts())
    store.collect_garbage(dry_run=False)
    assert set(store.list_artifacts()) == before
    again = compare_systems(NAMES, config, tiny_runtime, "four", call=direct)
    assert again.equals(metrics)
    assert set(store.list_artifacts()) == before


def metrics_dropped(metrics: Any, system: str) -> int:
    """Neutral images without a usable face."""
    row = metrics[(metrics["system"] == system) & (metrics["metric"] == "no_face_share")].iloc[0]
    return round(row["value"] * row["n"])


def test_the_table_has_a_line_a_system_with_its_interval(config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    metrics = compare_systems(["base", "elsewhere"], config, tiny_runtime, "two", call=call_directly())
    lines = systems_lines(metrics.to_dict("records"), ["base", "elsewhere"])
    row = metrics[(metrics["metric"] == "discrepancy_pooled") & (metrics["system"] == "base")].iloc[0]
    assert lines[0].startswith("pooled discrepancy, gender (floor 0.")
    assert lines[1] == f"  base       {row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
    assert lines[2].startswith("  elsewhere  0.")
    # nobody drew specific prompts of the dancer elsewhere, so there may be less to say, never a zero
    assert all(line.startswith(("  base", "  elsewhere")) or "," in line or "(" in line for line in lines)


def test_mistakes_are_found_before_anything_is_run(config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    def no_call(step: Any, arguments: Any) -> Any:
        raise AssertionError(f"{step.node} was run")

    with pytest.raises(ConfigError, match="no system 'cad'; choose from base, aligned"):
        compare_systems(["base", "cad"], config, tiny_runtime, "x", call=no_call)
    with pytest.raises(ConfigError, match="systems base, base: one is there twice"):
        compare_systems(["base", "base"], config, tiny_runtime, "x", call=no_call)
    gone = config.model_copy(update={"systems": {"gone": SystemConfig(images="imported-v1-00")}})
    with pytest.raises(InputError, match=r"no imported images 'imported-v1-00'.*popalign import images"):
        compare_systems(["base", "gone"], gone, tiny_runtime, "x", call=no_call)


def test_from_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", "identity-injection", "--preset", "smoke", "--root", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "pooled discrepancy, gender (floor" in result.stdout
    assert f"Metrics: {tmp_path}/runs/smoke-comparison/metrics.parquet" in result.stdout
    unknown = CliRunner().invoke(app, ["compare", "dall-e", "--preset", "smoke", "--root", str(tmp_path)])
    assert (unknown.exit_code, "there is no system 'dall-e'" in unknown.stderr) == (2, True)
