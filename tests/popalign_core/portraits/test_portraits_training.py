"""The recipe's machinery: the loop resumes exactly, labels and temperatures mean what they say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from popalign_core.portraits.classifier import (
    HEADS,
    Labels,
    confusion_rows,
    fit_temperatures,
    make_classifier,
    make_labels,
    predict_logits,
    split_heads,
)
from popalign_core.portraits.image_pool import ImagePool
from popalign_core.portraits.part_training import LoopConfig, fit, learning_rate_factor
from popalign_core.portraits.small_clip import contrastive_loss


def quadratic(model: nn.Module, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
    x = torch.randn(8, 3, generator=generator)
    return (model(x) - 1).square().mean(), {}


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def make_model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    config = LoopConfig(steps=40, learning_rate=1e-2, warmup_steps=5, checkpoint_every=10)
    whole = make_model()
    fit("whole", whole, quadratic, config, tmp_path)

    class Killed(Exception):
        pass

    def killed_at_25(model: nn.Module, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == 25:
            raise Killed
        return quadratic(model, generator, step)

    with pytest.raises(Killed):
        fit("torn", make_model(), killed_at_25, config, tmp_path)
    resumed = make_model()
    fit("torn", resumed, quadratic, config, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_loss_that_is_not_finite_stops_with_its_step(tmp_path: Path) -> None:
    def nan(model: nn.Module, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        return model(torch.full((1, 3), float("nan"))).sum(), {}

    with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
        fit("nan", make_model(), nan, LoopConfig(steps=3, learning_rate=1e-2), tmp_path)


def test_schedule_warms_up_and_decays() -> None:
    config = LoopConfig(steps=100, learning_rate=1.0, warmup_steps=10)
    assert learning_rate_factor(0, config) == pytest.approx(0.1)
    assert learning_rate_factor(50, config) == pytest.approx(0.02 + 0.98 * 0.5)
    assert learning_rate_factor(100, config) == pytest.approx(0.02)


def small_pool() -> ImagePool:
    rows = pd.DataFrame(
        [
            {
                "draw": "identity",
                "portrait_id": "a",
                "gender": "male",
                "race": "black",
                "covered": False,
                "thing": None,
            },
            {"draw": "identity", "portrait_id": "a", "gender": "male", "race": "black", "covered": True, "thing": None},
            {"draw": "extra", "portrait_id": "b", "gender": "female", "race": None, "covered": False, "thing": None},
            {"draw": "thing", "portrait_id": None, "gender": None, "race": None, "covered": None, "thing": "cat"},
        ]
    ).astype(object)
    return ImagePool(np.zeros((4, 64, 64, 3), np.uint8), rows)


def test_covered_faces_and_things_are_no_face() -> None:
    labels = make_labels(small_pool())
    assert labels.classes["face"].tolist() == [1, 0, 1, 0]
    assert labels.classes["gender"].tolist() == [0, -1, 1, -1]  # a covered face teaches nothing about gender
    assert labels.classes["race"].tolist() == [1, -1, -1, -1]


def test_temperature_of_overconfident_logits() -> None:
    """Right 3 times of 4 with two classes: the calibrated probability is .75, so margin / T = ln 3; margin is 10."""
    logits = torch.zeros(400, 7)
    logits[:, 2] = 10.0
    truth = torch.tensor([0, 0, 0, 1] * 100)
    unknown = torch.full((400,), -1)
    face = torch.ones(400, dtype=torch.int64)
    labels = Labels({"face": face, "gender": truth, "race": unknown.clone().fill_(0)}, np.array(["x"] * 400, object))
    assert fit_temperatures(logits, labels)["gender"] == pytest.approx(10 / np.log(3), rel=0.02)


def test_confusion_counts_pictures_and_people() -> None:
    labels = make_labels(small_pool())
    logits = torch.zeros(4, 7)
    logits[:, 1] = 1.0  # face: yes, for all four
    logits[:, 2] = 1.0  # gender: male
    rows = {(r["head"], r["true"], r["read"]): r for r in confusion_rows(logits, labels, "test")}
    assert rows["face", "no", "yes"]["n"] == 2
    assert rows["face", "yes", "yes"]["n"] == 2
    assert rows["gender", "female", "male"]["n"] == 1
    assert rows["gender", "female", "male"]["n_identities"] == 1
    assert rows["race", "black", "white"]["n"] == 1


def test_heads_cover_the_logits() -> None:
    network = make_classifier().eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    logits = predict_logits(network, pixels)
    assert {head: tuple(values.shape) for head, values in split_heads(logits).items()} == {
        head: (3, len(classes)) for head, classes in HEADS.items()
    }
    mirrored = predict_logits(network, pixels[:, :, ::-1])
    assert torch.allclose(logits, mirrored, atol=1e-5)


def test_contrastive_loss_counts_equal_captions_as_one() -> None:
    """Two equal captions, uniform logits: every softmax entry is 1/2, so the loss is ln 2 whichever is called right."""
    same = torch.ones(2, 2, dtype=torch.bool)
    assert contrastive_loss(torch.zeros(2, 2), same).item() == pytest.approx(np.log(2))
    sharp = torch.eye(2) * 50
    assert contrastive_loss(sharp, torch.eye(2, dtype=torch.bool)).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(sharp, same).item() == pytest.approx(25, rel=1e-3)


def test_log_has_a_line_every_fifty_steps(tmp_path: Path) -> None:
    fit("log", make_model(), quadratic, LoopConfig(steps=100, learning_rate=1e-2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100]
    assert lines[1]["loss"] < lines[0]["loss"]
