"""Checking a model against thresholds, for CI; it is evaluated first where the leaderboard does not have it."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from flows.plan.checkpoints import (
    CandidateModel,
    evaluate_checkpoints,
    evaluation_protocol,
    named_checkpoints,
    trained_model,
)
from flows.plan.execution import Call
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.evaluation import CLIP_SCORE, DIVERSITY
from popalign_core.evaluation.thresholds import Judgement, Threshold, check_thresholds, judge_thresholds
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.publishing.leaderboard import read_leaderboard
from tasks.stages.train import train_model


def check_model(
    model: str, thresholds: Sequence[Threshold], config: PipelineConfig, runtime: RuntimeConfig, *, call: Call
) -> tuple[list[Judgement], pd.DataFrame]:
    """Judge a model by its thresholds.

    Args:
        model: A diffusers folder, the name of a model that ships, or of a run whose trained model is meant.
        thresholds: What is asked.
        config: How it is evaluated.
        runtime: Store, device, batch size.
        call: How a stage is called.

    Returns:
        At least one judgement a threshold, in the order of the thresholds, and the metrics that they rest on.

    Raises:
        ConfigError: When a threshold names what is not there; before anything is run.
        MissingWeightsError: When there is no such model.
    """
    # thresholds with an axis are for the benchmarks that measure the identity axes
    axes = [axis.name for axis in config.identity_axes]
    benchmarks = ("neutral", "specific", "generic", *config.prompts.benchmarks)
    check_thresholds(thresholds, axes, benchmarks, (*(config.evaluation.scorers or (CLIP_SCORE,)), DIVERSITY))
    checkpoint = find_model(model, runtime, config.model.config)
    evaluate_checkpoints([checkpoint], config, runtime, call=call)
    board, protocol = read_leaderboard(runtime.root), evaluation_protocol(config, runtime)
    rows = board[(board["model_hash"] == checkpoint.model_hash) & (board["protocol"] == protocol)]
    return [judgement for threshold in thresholds for judgement in judge_thresholds(threshold, rows)], rows


def find_model(model: str, runtime: RuntimeConfig, config: str | None = None) -> CandidateModel:
    """A model by its folder or name, or the one that a run of this name has trained.

    Raises:
        MissingWeightsError: When it is neither.
    """
    store = open_store(runtime)
    if Path(model).name == model and not Path(model).exists():
        record = store.run_folder(model).read_record()
        trained = (record or {}).get("meta", {}).get("nodes", {}).get(train_model.name)
        if trained is not None:
            return trained_model(model, ArtifactRef(*trained.split("/", 1)), store)
    return named_checkpoints([model], config)[0]
