"""A path that is empty, as of a variable that is not set, is refused: it would be the current folder."""

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from flows.cli.app import app
from popalign_core.config import RuntimeConfig, parse_config
from popalign_core.errors import ConfigError


@pytest.mark.parametrize(
    "words",
    [
        ["import", "images", ""],
        ["import", "images", "somewhere", " "],
        ["import", "sets", ""],
        ["import", "pairs", ""],
        ["export", "preferences", "key", ""],
        ["run", "--config", ""],
        ["synthetic", "--out", ""],
        ["portraits", "train", "--data", ""],
        ["study", "export", "name", ""],
        ["study", "report", "name", ""],
        ["study", "instructions", "name", ""],
        ["review", "--token-file", ""],
        ["serve", "--token-file", ""],
    ],
)
def test_an_empty_path_is_refused(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    assert "a path is empty; is its variable set?" in " ".join(result.stderr.replace("│", "").split())


@pytest.mark.parametrize(
    "document",
    [
        {"model": {"name": ""}},
        {"model": {"lora": ""}},
        {"model": {"denoiser": ""}},
        {"sampling": {"safety_checker": ""}},
        {"prompts": {"train_lists": [""]}},
    ],
)
def test_an_empty_path_in_a_configuration_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="at least 1 character"):
        parse_config({"axes": [{"name": "gender", "classes": ["male", "female"]}]} | document)


@pytest.mark.parametrize("name", ["root", "scratch", "log_folder", "accelerate_config", "runner_address"])
def test_an_empty_path_of_the_machine_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="at least 1 character"):
        RuntimeConfig.model_validate({name: ""})
