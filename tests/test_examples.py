"""The files of examples/: each is used as its first lines say, on small models and tables."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pandas as pd
import pytest
import yaml
from doc_pages import DOCS, REPOSITORY, blocks
from typer.testing import CliRunner

from flows.cli.app import app
from flows.plan.expected_work import expected_work
from popalign_core.attributes.known_classes import check_classes, classes_read, shared_classes
from popalign_core.config import PipelineConfig, RuntimeConfig, load_config
from popalign_core.identities.augment import augment_prompts
from popalign_core.prompts.checks import check_prompts
from popalign_core.prompts.grammar import write_prompts

EXAMPLES = REPOSITORY / "examples"
RUN = re.compile(r"popalign check .*?(?=>|$)", re.DOTALL)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_changed_model_is_audited_beside_its_base(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    rows = load(EXAMPLES / "audit_lora.py").audit({"storage": "float8"}, tiny_config, tiny_runtime)
    pooled = rows[(rows["metric"] == "discrepancy_pooled") & (rows["axis"] == "gender")]
    assert list(pooled["system"]) == ["base", "changed"]
    assert (Path(tiny_runtime.root) / "runs" / "audit" / "report.html").is_file()


def test_the_sdxl_configuration_is_the_trial_with_a_lora() -> None:
    config = load_config(EXAMPLES / "align_sdxl.toml")
    check_prompts(write_prompts(config.prompts), config.axes)
    assert config.training.lora_rank == 8
    assert config.training.probe is not None
    assert config.model.name == "stabilityai/stable-diffusion-xl-base-1.0"
    n_images, n_steps = expected_work(config)
    assert (n_images > 1000, n_steps) == (True, 500)


def test_the_axis_of_ones_own_is_in_the_prompts_and_has_a_classifier() -> None:
    config = load_config(EXAMPLES / "custom_axis.toml")
    texts = set(augment_prompts(write_prompts(config.prompts), config.axes)["text"])
    subject = config.prompts.train_subjects[0]
    assert any(text.endswith(f"{subject} with glasses") for text in texts), sorted(texts)[:5]
    known = {name: classes_read(name, config.attributes) for name in config.attributes.names}
    check_classes("of the example", shared_classes(known), config.axes)


def shell_lines() -> list[str]:
    """The commands of the workflow for GitHub, and of the job for GitLab in the pages."""
    steps = yaml.safe_load((EXAMPLES / "ci_gate.yml").read_text(encoding="utf-8"))["jobs"]["check"]["steps"]
    gitlab = next(each for each in blocks((DOCS / "ci.md").read_text(encoding="utf-8"), "yaml") if "fairness:" in each)
    return [*(step["run"] for step in steps if "run" in step), *yaml.safe_load(gitlab)["fairness"]["script"]]


def test_the_gates_of_ci_are_command_lines_that_are_understood(tmp_path: Path) -> None:
    """With a model that is not there: exit code 4 comes after thresholds and configuration were read, 2 before."""
    config = tmp_path / "audit.toml"
    config.write_text('preset = "smoke"\n', encoding="utf-8")
    gates = [found[0] for line in shell_lines() if (found := RUN.search(line.replace("\\\n", " ")))]
    assert len(gates) == 2
    for gate in gates:
        words = [word.strip('"') for word in gate.split()[1:]]
        words = [{"$CONFIG": str(config), "audit.toml": str(config), "$MODEL": "nowhere"}.get(w, w) for w in words]
        words = ["nowhere" if word == "model" else word for word in words]
        result = CliRunner().invoke(app, [*words, "--root", str(tmp_path / "store")])
        assert (result.exit_code, "model 'nowhere' is not a folder" in result.stderr) == (4, True), result.output


def test_the_notebook_reads_a_runs_tables(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell; where matplotlib is not installed its calls go nowhere."""
    if importlib.util.find_spec("matplotlib") is None:
        pyplot = MagicMock()
        pyplot.subplots.side_effect = lambda **_: (MagicMock(), MagicMock())
        monkeypatch.setitem(sys.modules, "matplotlib", MagicMock(pyplot=pyplot))
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", pyplot)
    else:
        monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("POPALIGN_RUN", str(tiny_run / "runs" / "run"))
    cells = json.loads((EXAMPLES / "read_run.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # figures are a run's, not the file's
            exec("".join(cell["source"]), names)  # the file is ours
    table = names["table"]
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == ["base", "aligned"]
    assert ("gender", "male") in table.index


def test_a_run_is_shown_again_as_it_ended(tiny_run: Path) -> None:
    result = CliRunner().invoke(app, ["show", "run", "--root", str(tiny_run)])
    assert result.exit_code == 0, result.output
    assert "per-prompt discrepancy, gender" in result.stdout
    rows = json.loads(CliRunner().invoke(app, ["show", "run", "--root", str(tiny_run), "--json"]).stdout)
    assert {row["system"] for row in rows} == {"base", "aligned"}


def test_the_readmes_picture_comes_out_of_a_run(tiny_run: Path) -> None:
    script = load(DOCS / "before_after.py")
    pairs = script.read_run(script.Store(str(tiny_run), create=False), "run", 2, 3)
    assert len(pairs) == 2
    assert {side.shape[0] for sides in pairs.values() for side in sides} == {3}
    assert script.draw(pairs).size[0] == script.LEFT + 3 * script.CELL
