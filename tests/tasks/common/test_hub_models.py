"""A hub model without its weights here: a store remembers their hash, so that its artifacts are found."""

import shutil
from pathlib import Path

import pytest

from flows.plan.execution import call_directly, run_plan
from flows.plan.planning import plan_keys
from flows.plan.steps import PROMPT_STEPS, evaluation_steps
from popalign_core.config import ModelConfig, PipelineConfig, RuntimeConfig
from popalign_core.models import loading
from popalign_core.models.loading import model_hash

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEPS = (*PROMPT_STEPS, *evaluation_steps("base"))


@pytest.fixture
def hub(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with the tiny model as owner/model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(loading, "_HUB_HASHES", {})
    root = tmp_path / "hub" / "models--owner--model"
    shutil.copytree(tiny_weights / "pipeline", root / "snapshots" / COMMIT)
    return root


def test_who_has_no_weights_finds_what_others_sampled(
    hub: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    config = tiny_config.model_copy(update={"model": ModelConfig(name="owner/model", revision=COMMIT)})
    planned = plan_keys(config, tiny_runtime, STEPS)
    run_plan(planned, tiny_runtime, call_directly())
    with_weights = model_hash(config.model)
    assert with_weights == model_hash(tiny_config.model)
    shutil.rmtree(hub)
    assert model_hash(config.model) == f"owner/model@{COMMIT}"
    again = plan_keys(config, tiny_runtime, STEPS)
    assert again.refs == planned.refs
    assert all(node.is_hit for node in again)
    assert model_hash(config.model) == with_weights
    # another model of the same store is not taken for it
    other = config.model_copy(update={"model": ModelConfig(name="owner/other", revision=COMMIT)})
    assert not any(node.is_hit for node in plan_keys(other, tiny_runtime, STEPS) if node.step.stage.name == "sample")
