"""The reference model: a frozen copy kept in memory beside the policy, or the policy with its adapter off; and what it
is in later rounds, the policy with the weights that it had when they began.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from popalign_core.config import TrainingConfig
from popalign_core.errors import ConfigError
from popalign_core.training.checkpoint import Checkpoint
from popalign_core.training.trainable_weights import MovingWeights

Opponent = Callable[[], AbstractContextManager[None]]
"""Within it the model has the weights that it began the round with."""


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy on the same device whose weights take no gradient. It is never moved (PITFALLS 11)."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@contextmanager
def reference_weights(model: Any, frozen: nn.Module | None) -> Iterator[Any]:
    """Within the block, gradients are off and the yielded module predicts as the reference does.

    Whatever happens in the block, afterwards the policy has its own weights and trains them (PITFALLS 10).

    Args:
        model: The policy.
        frozen: The frozen copy; None when the policy carries a LoRA adapter, which is then switched off.

    Yields:
        The module to call.
    """
    with torch.no_grad():
        if frozen is not None:
            yield frozen
            return
        model.disable_adapters()
        try:
            yield model
        finally:
            model.enable_adapters()


def opponent_of(weights: MovingWeights, before: Checkpoint | None, config: TrainingConfig) -> Opponent | None:
    """What compared samples are measured against: the policy as it was when it sampled them; None is the base model.

    Args:
        weights: Of the policy.
        before: The end of the round before; None in the first.
        config: Objective: those with advantages keep the base model, or have no reference.

    Raises:
        ConfigError: When the weights are sharded.
    """
    if before is None or config.has_advantages:
        return None
    if any(hasattr(weight, "device_mesh") for weight in weights.current.values()):
        raise ConfigError(
            f"training.rounds is {config.rounds}: {config.objective!r} compares with the weights before the round, "
            "which cannot be put into shards; leave runtime.accelerate_config 'fsdp2' and 'zero2' out"
        )
    own = weights.current
    return partial(
        weights.replaced, {name: weight.to(own[name].device) for name, weight in before.final_weights().items()}
    )
