"""The heads' networks run on batches of faces and equal trunks run once (pitfall 17); small ones of the same layout.

The real files, of 512 MB each, are run in the slow tests of test_deepface.py.
"""

import numpy as np
import pytest
import torch
from torch import nn

from popalign_core.attributes import deepface_heads as heads
from popalign_core.attributes.deepface_heads import FaceHeads

WIDTH, SIZES = 2, {"gender": 2, "race": 6, "age": 101}


def network(axis: str, seed: int) -> nn.Module:
    """DeepFace's layers by their names, two channels wide."""
    torch.manual_seed(seed)
    backbone = nn.Module()
    n_channels = 3
    for block in heads._CONVOLUTIONS:
        for name in block:
            layer = nn.Conv2d(n_channels, WIDTH, 3, padding=1)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            backbone.add_module(name, layer)
            n_channels = WIDTH
    torch.manual_seed(100 + len(axis))
    backbone.add_module("fc6", nn.Conv2d(WIDTH, 8, 7))
    backbone.add_module("fc7", nn.Conv2d(8, 8, 1))
    whole = nn.Module()
    whole.add_module("backbone", backbone)
    whole.add_module("predictions", nn.Conv2d(8, SIZES[axis], 1))
    return whole


@pytest.fixture
def passes(monkeypatch):
    """How many faces each forward pass of a trunk took."""
    sizes: list[int] = []
    original = heads._features

    def counting(backbone, batch):
        sizes.append(len(batch))
        return original(backbone, batch)

    monkeypatch.setattr(heads, "_features", counting)
    monkeypatch.setattr(heads, "require_weights", lambda *_: None)
    return sizes


FACES = list(np.random.default_rng(0).random((40, 224, 224, 3), dtype=np.float32))


@pytest.mark.parametrize(("seeds", "n_trunks"), [((1, 1, 1), 1), ((1, 2, 1), 2), ((1, 2, 3), 3)])
def test_forty_faces_take_three_passes_of_each_trunk_and_not_forty_of_each_head(monkeypatch, passes, seeds, n_trunks):
    by_axis = dict(zip(SIZES, seeds, strict=True))
    monkeypatch.setattr(heads, "_load", lambda axis: network(axis, by_axis[axis]))
    classifier = FaceHeads(list(SIZES))
    assert len(set(classifier._trunk_of.values())) == n_trunks
    together = classifier.read(FACES)
    assert sorted(passes) == sorted([16, 16, 8] * n_trunks)
    assert {axis: shares.shape for axis, shares in together.items()} == {axis: (40, k) for axis, k in SIZES.items()}
    alone = classifier.read(FACES[17:18])
    for axis, shares in together.items():
        np.testing.assert_allclose(shares[17], alone[axis][0], atol=1e-6)
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)


def test_no_face_takes_no_pass(monkeypatch, passes):
    monkeypatch.setattr(heads, "_load", lambda axis: network(axis, 1))
    assert [len(shares) for shares in FaceHeads(["gender", "age"]).read([]).values()] == [0, 0]
    assert passes == []
