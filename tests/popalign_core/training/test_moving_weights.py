"""The weights that train, and their moving mean."""

import pytest
import torch

from popalign_core.training.trainable_weights import MovingWeights


def test_the_mean_moves_by_a_decay_that_grows() -> None:
    weights = MovingWeights({"w": torch.zeros(1)}, decay=0.5)
    weights.current["w"].fill_(1.0)
    for step, expected in ((1, 1 - 2 / 11), (2, 1 - 2 / 11 * 3 / 12), (90, 1 - 2 / 11 * 3 / 12 / 2)):
        weights.average(step)  # decays 2/11, 3/12, then the .5 that was asked for
        assert float(weights.mean["w"]) == pytest.approx(expected)
    assert weights.final() is weights.mean


def test_without_a_decay_there_is_no_mean() -> None:
    weights = MovingWeights({"w": torch.ones(2)}, decay=0.0)
    weights.average(1)
    assert weights.mean == {}
    assert torch.equal(weights.final()["w"], torch.ones(2))


def test_a_mean_of_a_checkpoint_goes_to_the_device_of_the_weights() -> None:
    """Checkpoints are read into memory: on a GPU, training would end at the first step after a resume."""
    weights = MovingWeights({"w": torch.ones(2, device="meta")}, decay=0.5)
    weights.restore_mean({"w": torch.zeros(2)})
    assert weights.mean["w"].device.type == "meta"


def test_put_changes_the_weights_in_place_and_copy_does_not_follow() -> None:
    weight = torch.zeros(2)
    weights = MovingWeights({"w": weight}, decay=0.0)
    kept = weights.copy()
    weights.put({"w": torch.tensor([1.0, 2.0])})
    assert weight.tolist() == [1.0, 2.0]
    assert kept["w"].tolist() == [0.0, 0.0]
