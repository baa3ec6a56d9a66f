"""The reference model: a frozen copy kept in memory beside the policy, or the policy with its adapter off."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


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
