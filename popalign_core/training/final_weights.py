"""The end of a training: its final weights, put into a model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popalign_core.config import TrainingConfig
from popalign_core.errors import TrainingError
from popalign_core.training.checkpoint import Checkpoint, LogRow, list_checkpoints
from popalign_core.training.trainable_weights import choose_weights, trained_weights


def load_trained(model: Any, folder: Path, config: TrainingConfig, last_step: int) -> list[LogRow]:
    """Give a base model the weights that other processes trained in `folder`; returns the log.

    Raises:
        TrainingError: When there is no checkpoint of a finished training.
    """
    dtype = model.dtype
    choose_weights(model, config)
    checkpoint = last_checkpoint(folder)
    if checkpoint is None or (checkpoint.step < last_step and not checkpoint.running["stopped"]):
        raise TrainingError(f"{folder} holds no finished training; run the same command again to resume")
    finish_model(model, checkpoint.final_weights(), config, dtype)
    return checkpoint.log


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest one, as training has just left it; None when there is none."""
    paths = list_checkpoints(folder)
    return Checkpoint(**torch.load(paths[0], map_location="cpu", weights_only=True)) if paths else None


def finish_model(model: Any, weights: dict[str, Tensor], config: TrainingConfig, dtype: torch.dtype) -> None:
    """Put the final weights in place, in the dtype that the model came with; nothing in it trains any more."""
    with torch.no_grad():
        for name, weight in trained_weights(model).items():
            weight.copy_(weights[name])
    if config.lora_rank == 0 and model.dtype != dtype:
        model.to(dtype)
    model.requires_grad_(False)
