"""New checkpoints: found by their weights, evaluated once each, appended to the leaderboard."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.plan.checkpoints import (
    evaluate_checkpoints,
    evaluation_protocol,
    find_checkpoints,
    named_checkpoints,
    new_checkpoints,
)
from flows.plan.execution import call_directly
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError, MissingWeightsError
from tasks.publishing.leaderboard import read_leaderboard


@pytest.fixture
def watch(tmp_path: Path, tiny_weights: Path) -> Path:
    folder = tmp_path / "watch"
    for name in ("step-100", "copy-of-100"):
        shutil.copytree(tiny_weights / "pipeline", folder / name)
    return folder


def change_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"] += 0.25
    save_file(weights, path, {"format": "pt"})


def no_call(node: Any, runtime: Any) -> Any:
    raise AssertionError(f"{node.node} was run although nothing is new")


def test_each_weights_are_evaluated_once(watch: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    rows = evaluate_checkpoints(
        find_checkpoints(str(watch), tiny_runtime), tiny_config, tiny_runtime, call=call_directly()
    )
    assert set(rows["checkpoint"]) == {"copy-of-100"}  # the first of two equal ones
    found = find_checkpoints(str(watch), tiny_runtime)
    assert [checkpoint.name for checkpoint in found] == ["copy-of-100", "step-100"]
    nothing = evaluate_checkpoints(found, tiny_config, tiny_runtime, call=no_call)
    assert nothing.empty
    board = read_leaderboard(tiny_runtime.root)
    assert len(board) == len(rows)
    assert board.duplicated(["model_hash", "benchmark", "metric", "axis", "scorer"]).sum() == 0

    shutil.copytree(watch / "step-100", watch / "step-200")
    change_weights(watch / "step-200")
    again = evaluate_checkpoints(
        find_checkpoints(str(watch), tiny_runtime), tiny_config, tiny_runtime, call=call_directly()
    )
    assert set(again["checkpoint"]) == {"step-200"}
    assert len(read_leaderboard(tiny_runtime.root)) == 2 * len(rows)


@pytest.mark.usefixtures("finished")
def test_another_protocol_makes_a_checkpoint_new_again(
    watch: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    found = find_checkpoints(str(watch), tiny_runtime)
    evaluate_checkpoints(found, tiny_config, tiny_runtime, call=call_directly())
    protocol = evaluation_protocol(tiny_config, tiny_runtime)
    assert new_checkpoints(found, protocol, tiny_runtime.root) == []
    evaluation = tiny_config.evaluation.model_copy(update={"n_bootstrap": 101})
    other = tiny_config.model_copy(update={"evaluation": evaluation})
    fresh = new_checkpoints(found, evaluation_protocol(other, tiny_runtime), tiny_runtime.root)
    assert [checkpoint.name for checkpoint in fresh] == ["copy-of-100"]


@pytest.mark.usefixtures("finished")
def test_a_broken_checkpoint_does_not_stop_the_others(
    watch: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    (watch / "copy-of-100" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingWeightsError) as caught:
        evaluate_checkpoints(
            find_checkpoints(str(watch), tiny_runtime), tiny_config, tiny_runtime, call=call_directly()
        )
    assert caught.value.__notes__ == [f"checkpoint copy-of-100 in {watch / 'copy-of-100'}"]
    assert set(read_leaderboard(tiny_runtime.root)["checkpoint"]) == {"step-100"}


def test_an_absent_watch_folder_is_an_error(tmp_path: Path, tiny_runtime: RuntimeConfig) -> None:
    with pytest.raises(ConfigError, match=r"the watch folder .*nowhere.* does not exist"):
        find_checkpoints(str(tmp_path / "nowhere"), tiny_runtime)


def test_a_store_without_trained_models_has_no_checkpoints(tiny_runtime: RuntimeConfig) -> None:
    assert find_checkpoints(None, tiny_runtime) == []


def test_models_can_be_named_by_folder(tiny_weights: Path, tmp_path: Path) -> None:
    (named,) = named_checkpoints([str(tiny_weights / "pipeline")])
    assert named.folder == tiny_weights / "pipeline"
    with pytest.raises(MissingWeightsError, match=r"no model_index\.json"):
        named_checkpoints([str(tmp_path)])
    # its revision could not be given
    with pytest.raises(
        MissingWeightsError, match=r"model 'owner/model' is not a folder or a \.safetensors file; give one"
    ):
        named_checkpoints(["owner/model"])
