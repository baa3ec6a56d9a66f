"""Optimisers by name, and the learning rate of a step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from popalign_core.config import TrainingConfig
from popalign_core.errors import ConfigError


def make_optimizer(weights: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, AdamW with 8-bit moments (bitsandbytes), or Adafactor, whose state is a row and a column a matrix.

    Raises:
        ConfigError: When bitsandbytes is asked for and not installed.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adafactor":
        # transformers', not torch's: that one multiplies the rate by each weight's size, the published recipes do not
        from transformers.optimization import Adafactor

        factored: torch.optim.Optimizer = Adafactor(
            weights, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False, warmup_init=False
        )
        return factored
    if config.optimizer == "adamw-8bit":
        try:
            from bitsandbytes import optim
        except ImportError as error:
            raise ConfigError(
                "training.optimizer 'adamw-8bit' needs bitsandbytes: pip install 'popalign[bnb]', or choose adamw"
            ) from error
        eight_bit: Any = optim
        optimizer: torch.optim.Optimizer = eight_bit.AdamW8bit(weights, lr=rate, weight_decay=decay)
        return optimizer
    return torch.optim.AdamW(weights, lr=rate, weight_decay=decay)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Of a step, counted from 1 over all rounds: up in a line over the warm-up; times what the schedule leaves over the
    whole run.
    """
    rate = config.learning_rate * min(1.0, step / max(1, config.n_warmup_steps))
    done = (step - 1) / (config.rounds * config.n_steps)
    if config.learning_rate_schedule == "linear":
        return rate * (1 - done)
    if config.learning_rate_schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * done))
    return rate
