"""Tensor files: the same content is the same bytes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.common.tensors import write_tensors


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.zeros(2)}
    paths = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for path in paths:
        write_tensors(path, tensors, {"about": "these"})
    assert len({path.read_bytes() for path in paths}) == 1
    assert torch.equal(load_file(paths[0])["b"], tensors["b"])


def test_metadata_whose_order_is_left_to_chance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metadata \['one', 'two'\]: one entry at most"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, {"two": "2", "one": "1"})
    assert list(tmp_path.iterdir()) == []
