"""Systems side by side, on the same prompts and seeds, the trained model and imported images among them."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chessboards import lit
from image_files import write_csv
from typer.testing import CliRunner

from flows.cli.app import app
from flows.plan.compare_systems import plan_systems, run_comparison
from flows.plan.execution import call_directly, run_plan
from flows.plan.planning import PlannedNode
from flows.plan.runs import import_external_images
from flows.terminal.terminal_tables import systems_lines
from popalign_core.attributes.deepface_files import HEAD_WEIGHTS, weights_place
from popalign_core.config import AttributesConfig, PipelineConfig, RuntimeConfig, SystemConfig
from popalign_core.errors import ConfigError, InputError
from storage.formats.images import encode_png
from storage.store import ArtifactRef
from tasks.common.measuring import CLASSIFIERS, Classifier
from tasks.common.stage_object import open_store
from tasks.stages.comparison import TABLES

NAMES = ["base", "cads", "aligned+cads", "elsewhere"]


def portrait(*, seed: int) -> bytes:
    """A picture of a man or a woman, as the stand-in reader sees it; of two seeds never the same."""
    pixels = np.random.default_rng(seed).integers(80, 100, (64, 64, 3), dtype=np.uint8)
    return encode_png(lit(pixels, ("male", "female")[seed % 2]))


@pytest.fixture
def config(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path) -> PipelineConfig:
    """With a system on the trained model and one whose pictures are imported."""
    texts = ("a photo of a judge", "a photo of a dancer", "a photo of a cat", "a photo of a male judge")
    rows: Any = [(text, portrait(seed=10 * n + i)) for n, text in enumerate(texts) for i in range(4)]
    folder = write_csv(tmp_path / "pictures", rows)
    imported = import_external_images([folder], tiny_config, tiny_runtime, call=call_directly())["imported"]
    systems = {
        "aligned+cads": SystemConfig(aligned=True, sampling={"cads": {"tau1": 0.2}}),
        "elsewhere": SystemConfig(images=imported.key),
    }
    return tiny_config.model_copy(update={"systems": systems})


@pytest.mark.usefixtures("finished")
def test_every_kind_of_system_is_measured_once(config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    calls: list[str] = []
    direct = call_directly()

    def call(node: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        calls.append(node.node)
        return direct(node, runtime)

    ref = run_comparison(NAMES, config, tiny_runtime, "four", call=call)
    store = open_store(tiny_runtime)
    metrics = store.read_table(ref, "metrics")
    assert list(metrics["system"].unique()) == NAMES
    pooled = metrics[metrics["metric"] == "discrepancy_pooled"].set_index("system")
    assert pooled.loc["elsewhere", "n"] <= 8 < 12 == pooled.loc["base", "n"] + metrics_dropped(metrics, "base")
    assert [node for node in calls if node.startswith("sample")] == [
        "sample",
        "sample-eval:base",
        "sample-eval:cads",
        "sample-eval:aligned+cads",
    ]
    folder = Path(tiny_runtime.root) / "runs" / "four"
    tables = {f"{table}.{form}" for table in TABLES for form in ("csv", "json", "parquet")}
    written = {*tables, "report.html", "card.md", "reserved.json", "run.json"}
    assert {path.name for path in folder.iterdir()} == written
    differences = store.read_table(ref, "comparison")
    assert set(differences["reference"]) == {"base"}
    tested = differences[differences["metric"] == "discrepancy_pooled"].set_index("system")
    assert 0 < tested.loc["cads", "p_value"] <= tested.loc["cads", "p_adjusted"] <= 1
    assert "not tested" in tested.loc["elsewhere", "note"]
    wins = store.read_table(ref, "wins").set_index(["system", "benchmark"])
    assert wins.loc[("cads", "neutral"), ["scorer", "n"]].tolist() == ["clip_score", 12]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in NAMES)
    assert "elsewhere, picture" not in page  # its pictures have no seed in common with the others'
    # nothing of it is garbage, and a second time everything is a hit
    before = set(store.list_artifacts())
    store.collect_garbage(dry_run=False)
    assert set(store.list_artifacts()) == before
    assert run_comparison(NAMES, config, tiny_runtime, "four", call=direct) == ref
    assert set(store.list_artifacts()) == before
    assert all(node.is_hit for node in plan_systems(NAMES, config, tiny_runtime).planned)


def metrics_dropped(metrics: Any, system: str) -> int:
    """Neutral images without a usable face."""
    row = metrics[(metrics["system"] == system) & (metrics["metric"] == "no_face_share")].iloc[0]
    return round(row["value"] * row["n"])


@pytest.mark.usefixtures("finished")
@pytest.mark.usefixtures("finished")
def test_trained_systems_share_the_preference_data_and_one_starts_where_another_ended(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    names = ["base", "aligned", "popalign", "sft", "dpo+popalign"]
    side_by_side = plan_systems(names, tiny_config, tiny_runtime, n_seeds=2, scale=0.5)
    steps = {node.node: node.step for node in side_by_side.planned}
    # the pipeline's own training is popalign already; dpo is trained for its successor alone
    assert [node for node in steps if node.startswith(("sample", "train")) and "eval" not in node] == [
        *("sample", "train", "train:sft", "train:dpo", "train:dpo+popalign"),
        *("train:aligned@1", "train:sft@1", "train:dpo@1", "train:dpo+popalign@1"),
    ]
    assert steps["train:dpo+popalign@1"].inputs["start"] == "train:dpo@1"
    assert steps["comparison"].inputs["sample:popalign@1"] == "sample-eval:aligned@1"
    assert steps["comparison"].inputs["calibration"] == "calibration"
    ref = run_plan(side_by_side.planned, tiny_runtime, call_directly())["comparison"]
    store = open_store(tiny_runtime)
    refs = side_by_side.planned.refs
    first, second = (
        (store.localize(refs[node], "unet") / "diffusion_pytorch_model.safetensors").read_bytes()
        for node in ("train:dpo", "train:dpo+popalign")
    )
    assert first != second
    assert f"from where the training `{refs['train:dpo'].key}` left it" in (
        store.localize(refs["train:dpo+popalign"], "README.md")
    ).read_text(encoding="utf-8")
    costs = store.read_table(ref, "costs").set_index(["system", "what"])["value"]
    # two replicates of 2 prompts with 3 neutral and 2 x 2 specific images, and 2 things with 1; 4 steps a training
    assert costs["base"].to_dict() == {"images drawn": 2 * 16, "denoiser steps": 2 * 16 * 2}
    assert (costs["sft", "training"], costs["dpo+popalign", "training"]) == (2 * 4, 2 * 8)


def test_what_a_system_changes_of_its_preferences_is_drawn_for_it_alone(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    systems = {
        "larger": SystemConfig(training={}, preferences={"set_size": 3}),
        "more": SystemConfig(training={}, preferences={"n_neutral": 8}),
    }
    side_by_side = plan_systems(["larger", "more"], tiny_config.model_copy(update={"systems": systems}), tiny_runtime)
    nodes = [node.node for node in side_by_side.planned]
    assert [node for node in nodes if node.startswith(("sample:", "preferences"))] == [
        "preferences:larger",
        "sample:more",
        "preferences:more",
    ]
    assert "train" not in nodes


@pytest.mark.usefixtures("finished")
def test_the_table_has_a_line_a_system_with_its_interval(config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    ref = run_comparison(["base", "elsewhere"], config, tiny_runtime, "two", call=call_directly())
    metrics = open_store(tiny_runtime).read_table(ref, "metrics")
    lines = systems_lines(metrics.to_dict("records"), ["base", "elsewhere"])
    row = metrics[(metrics["metric"] == "discrepancy_pooled") & (metrics["system"] == "base")].iloc[0]
    assert lines[0] == "pooled discrepancy, gender"
    interval = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
    assert lines[1] == f"  base       {row['value']:.3f} {interval} (floor {row['floor']:.3f})"
    assert lines[2].startswith("  elsewhere  0.")
    # nobody drew specific prompts of the dancer elsewhere, so there may be less to say, never a zero
    assert all(line.startswith(("  base", "  elsewhere")) or "," in line for line in lines)


def test_mistakes_are_found_before_anything_is_run(config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    def no_call(node: Any, runtime: Any) -> Any:
        raise AssertionError(f"{node.node} was run")

    with pytest.raises(ConfigError, match=r"scale is 1\.5; give a share of the evaluation images, above 0 and up to 1"):
        run_comparison(["cads"], config, tiny_runtime, "x", call=no_call, scale=1.5)
    with pytest.raises(ConfigError, match="0 seeds are too few"):
        run_comparison(["cads"], config, tiny_runtime, "x", call=no_call, n_seeds=0)
    with pytest.raises(ConfigError, match=r"no system 'cad'; did you mean 'cads'.* Or choose from base, aligned"):
        run_comparison(["base", "cad"], config, tiny_runtime, "x", call=no_call)
    with pytest.raises(ConfigError, match="systems base, base: one is given twice"):
        run_comparison(["base", "base"], config, tiny_runtime, "x", call=no_call)
    gone = config.model_copy(update={"systems": {"gone": SystemConfig(images="imported-v2-00")}})
    with pytest.raises(InputError, match=r"no imported images 'imported-v2-00'.*popalign import images"):
        run_comparison(["base", "gone"], gone, tiny_runtime, "x", call=no_call)


def test_from_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", "identity-injection", "--preset", "smoke", "--root", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "pooled discrepancy, gender\n" in result.stdout
    assert "(floor 0." in result.stdout
    assert "  base                0." in result.stdout  # what a single system is compared with
    assert f"{tmp_path}/runs/smoke-comparison/" in result.stdout
    command = ["compare", "base", "cads", "--seeds", "2", "--scale", "0.5", "--plan", "--preset", "smoke"]
    planned = CliRunner().invoke(app, [*command, "--root", str(tmp_path)])
    assert [line.split()[:2] for line in planned.stdout.splitlines() if line.startswith("sample")] == [
        ["sample-eval:base", "miss"],
        ["sample-eval:cads", "miss"],
        ["sample-eval:base@1", "miss"],
        ["sample-eval:cads@1", "miss"],
    ]
    words = ["compare", "base", "cads", *command[5:7], *command[-2:], "--root", str(tmp_path)]
    refused = CliRunner().invoke(app, words)
    assert (refused.exit_code, "differs in evaluation, systems compared" in refused.stderr) == (2, True)
    quick = CliRunner().invoke(app, [*words, "--replace"])
    assert quick.exit_code == 0, quick.output
    page = (tmp_path / "runs" / "smoke-comparison" / "report.html").read_text(encoding="utf-8")
    # the configuration on the page is the scaled one: to scale it again would draw a quarter
    assert (
        "popalign compare base cads --seeds 1 --config FILE.json, the file holding the configuration below, whose"
        in page
    )
    assert "scaled by 0.5 already" in page
    printed = re.search(r"<dt>configuration</dt><dd>.*?<pre[^>]*>(.*?)</pre>.*?</dd>", page)
    assert printed is not None
    (tmp_path / "again.json").write_text(unescape(printed[1]), encoding="utf-8")
    again = ["compare", "base", "cads", "--seeds", "1", "--plan", "--config", str(tmp_path / "again.json")]
    nodes = CliRunner().invoke(app, [*again, "--root", str(tmp_path)]).stdout.splitlines()
    # what the scaled page is made of; the unscaled page itself says something else, and is another
    found = dict(line.split()[:2] for line in nodes if line.split()[1:2] in (["hit"], ["miss"]))
    assert found.pop("comparison") == "miss"
    assert {"sample-eval:base", "scores:cads"} <= set(found)
    assert set(found.values()) == {"hit"}
    unknown = CliRunner().invoke(app, ["compare", "dall-e", "--preset", "smoke", "--root", str(tmp_path)])
    assert (unknown.exit_code, "there is no system 'dall-e'" in unknown.stderr) == (2, True)


class SecondReader:
    """Agrees with the stand-in but for the pictures whose sum divides by 3."""

    name, version = "second", "1"

    def __init__(self) -> None:
        self.first = CLASSIFIERS["portraits"].load(AttributesConfig(), "cpu")
        self.axes = self.first.axes

    def read(self, pictures: Any, image_ids: Any = ()) -> list[Any]:
        readings = self.first.read(pictures, image_ids)
        for pixels, reading in zip(pictures, readings, strict=True):
            if reading.n_faces and int(pixels.sum(dtype=np.int64)) % 3 == 0:
                male, female = (reading.probabilities["gender"][name] for name in ("male", "female"))
                reading.probabilities["gender"] = {"male": female, "female": male}
        return list(readings)


@pytest.mark.usefixtures("finished")
def test_a_second_classifier_reads_the_same_images_and_its_agreement_is_told(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    (tmp_path / ".deepface" / "weights").mkdir(parents=True)
    for axis in ("gender", "race"):  # another reads in their place
        weights_place(HEAD_WEIGHTS[axis][0]).touch()
    reader = Classifier(lambda: "second@1", lambda config, device: SecondReader())
    monkeypatch.setitem(CLASSIFIERS, "deepface", reader)
    evaluation = tiny_config.evaluation.model_copy(update={"second_classifier": "deepface"})
    config = tiny_config.model_copy(update={"evaluation": evaluation})
    side_by_side = plan_systems(["base", "cads"], config, tiny_runtime)
    nodes = {node.node: node.n_images for node in side_by_side.planned}
    assert nodes["attributes-second:base"] == nodes["attributes-eval:base"]
    ref = run_plan(side_by_side.planned, tiny_runtime, call_directly())["comparison"]
    metrics = open_store(tiny_runtime).read_table(ref, "metrics")
    agreed = metrics[metrics["metric"] == "agreement"]
    assert set(agreed["scorer"]) == {"pixel-sum@1|second@1"}
    assert set(agreed["system"]) == {"base", "cads"}
    assert ((agreed["value"] > 0) & (agreed["value"] < 1)).any()
    eyes = tiny_config.model_copy(update={"evaluation": evaluation.model_copy(update={"second_classifier": "eyes"})})
    with pytest.raises(ConfigError, match=r"(?s)evaluation\.second_classifier does not fit.*\['eyes'\] is not known"):
        plan_systems(["cads"], eyes, tiny_runtime)
