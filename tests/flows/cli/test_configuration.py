"""`popalign --version`, `init`, `config`, `show`, and output for programs."""

import json
from pathlib import Path

import pandas as pd
import pytest
from run_folders import put_run
from typer.testing import CliRunner, Result

import popalign_core
from flows.cli.app import app
from popalign_core.config import load_config, parse_config
from popalign_core.config.presets import preset
from storage.store import ArtifactRef, Store


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_the_version_is_the_packages() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.output) == (0, f"popalign {popalign_core.__version__}\n")


def test_shell_completion_is_offered() -> None:
    assert "--install-completion" in invoke("--help").output


def test_the_resolved_configuration_is_printed(tmp_path: Path) -> None:
    words = ("config", "--preset", "smoke", "--set", "training.beta=30")
    result = invoke(*words)
    path = tmp_path / "resolved.toml"
    path.write_text(result.stdout, encoding="utf-8")
    config = load_config(path)
    assert config.training.beta == 30
    assert config.prompts == preset("smoke").prompts
    assert parse_config(json.loads(invoke(*words, "--json").stdout)) == config


def test_a_configuration_is_written_once(tmp_path: Path) -> None:
    path = str(tmp_path / "mine.toml")
    result = invoke("init", path, "--preset", "smoke", "--set", "model.name=somewhere", "--set", "runtime.device=cpu")
    assert result.exit_code == 0, result.output
    assert load_config(Path(path)).model.name == "somewhere"
    again = invoke("init", path)
    assert (again.exit_code, "already exists; choose another file" in again.stderr) == (3, True)
    assert invoke("init", path, "--force").exit_code == 0
    assert load_config(Path(path)) == preset("portraits")


def test_a_wrong_field_is_refused_before_the_file_is_made(tmp_path: Path) -> None:
    result = invoke("init", str(tmp_path / "mine.toml"), "--set", "training.betta=3")
    assert (result.exit_code, "did you mean `beta`?" in result.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("stage", "trian"), 2, "there is no stage 'trian'; did you mean 'train'?"),
        (("plan", "--preset", "smok"), 2, "unknown preset 'smok'; did you mean 'smoke'?"),
        (("compare", "base", "dynamic-cgf"), 2, "there is no system 'dynamic-cgf'; did you mean 'dynamic-cfg'?"),
        (("shwo", "mine"), 2, "show"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(
    words: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    result = invoke(*words, *(() if words[0] == "shwo" else ("--root", str(tmp_path))))
    assert (result.exit_code, said in result.output) == (code, True), result.output


METRIC = {"benchmark": "neutral", "metric": "discrepancy_pooled", "axis": "gender", "note": "", "n": 60}


def rows(ref: ArtifactRef) -> pd.DataFrame:
    values = {"base": 0.42, "aligned": 0.11}
    systems = [each for each in values if ref.stage == "comparison" or f"evaluate:{each}" in ref.key] or list(values)
    return pd.DataFrame(
        [
            METRIC | {"system": each, "value": values[each], "ci_low": 0.1, "ci_high": 0.5, "floor": float("nan")}
            for each in systems
        ]
    )


def test_a_comparison_is_shown_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_run(Store(str(tmp_path)), "mine", ["comparison"])
    monkeypatch.setattr(Store, "read_table", lambda self, ref, name: rows(ref))
    result = invoke("show", "mine", "--root", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "pooled discrepancy, gender" in result.stdout
    assert "0.420 [0.100, 0.500]" in result.stdout
    shown = json.loads(invoke("show", "mine", "--root", str(tmp_path), "--json").stdout)
    assert [(row["system"], row["value"], row["floor"]) for row in shown] == [
        ("base", 0.42, None),
        ("aligned", 0.11, None),
    ]


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    put_run(Store(str(tmp_path)), "portraits", ["train"])
    unknown = invoke("show", "portrait", "--root", str(tmp_path))
    assert (unknown.exit_code, "did you mean 'portraits'?" in unknown.stderr) == (3, True)
    trained = invoke("show", "portraits", "--root", str(tmp_path))
    assert (trained.exit_code, "has no report; it has train" in trained.stderr) == (3, True)


def test_a_plan_and_a_check_up_are_objects_for_programs(tmp_path: Path) -> None:
    planned = json.loads(invoke("plan", "--preset", "smoke", "--root", str(tmp_path), "--json").stdout)
    assert planned[0]["node"] == "prompts"
    assert {row["is_hit"] for row in planned} == {False}
    assert next(row["n_steps"] for row in planned if row["node"] == "train") == 4
    found = json.loads(invoke("doctor", "--root", str(tmp_path), "--json").stdout)
    assert {"is_there", "subject", "detail"} == set(found[0])
