"""Another processor's rounding: the last bits of linear layers and convolutions depend on the shape of the batch.

Which kernel a library picks for a shape is the processor's business: on one the last bits of a picture depend on the
batch that it was drawn in, on another they do not. This plugin makes them depend on it on every machine:

    PYTHONPATH=tests/support python -m pytest -p other_rounding tests/popalign_core tests/tasks

Equal shapes give equal bits still. Processes that a test starts compute as the machine does, so tests that compare
what worker processes make with what this one makes are skipped.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

SIZE = 4e-7
"""Relative, at most: a few float32 roundings, as sums in another order have them."""


@functools.cache
def roundings(shape: tuple[int, ...]) -> Tensor:
    """A factor near 1 for every element, always the same for a shape."""
    with torch.inference_mode(False):  # it is kept, and a training may be the next to use it
        generator = torch.Generator().manual_seed(zlib.crc32(repr(shape).encode()))
        return 1 + SIZE * (2 * torch.rand(shape, generator=generator) - 1)


def rounded_by_shape(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function with last bits that depend on the shape of what it gives."""

    @functools.wraps(compute)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        found = compute(*args, **kwargs)
        if found.dtype != torch.float32 or torch.compiler.is_compiling():
            return found
        return found * roundings(tuple(found.shape)).to(found.device)

    return call


for _name in ("linear", "conv2d"):
    setattr(torch.nn.functional, _name, rounded_by_shape(getattr(torch.nn.functional, _name)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what compares the bits of other processes."""
    for item in items:
        if item.path.name in ("test_shardwise.py", "test_train_launch.py"):
            item.add_marker(pytest.mark.skip("worker processes do not round as this one does"))
