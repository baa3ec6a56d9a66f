"""Rounds are one training whose data change: nothing is lost between them, and the fixed point is the policy itself."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import RUNTIME, TIME_IDS, changed, same_weights, stop_at, values

from popalign_core.config import RuntimeConfig
from popalign_core.errors import DamagedWeightsError
from popalign_core.models.denoisers import find_denoiser
from popalign_core.training.checkpoint import Checkpoint, LogRow
from popalign_core.training.data import PreferenceData
from popalign_core.training.final_weights import last_checkpoint
from popalign_core.training.job import Observers, OnStep, TrainingSubject
from popalign_core.training.round_state import load_round_state, save_round_state
from popalign_core.training.trainer import train_preferences

POLICY = {"objective": "population-policy", "n_pairs": 4, "pairs_per_set": 2, "learning_rate_schedule": "linear"}


def grouped(data: PreferenceData) -> PreferenceData:
    """The same samples in two groups, with advantages."""
    return replace(data, advantages=torch.where(data.preferred, 0.5, -0.5))


def train(
    pipeline: Any,
    data: PreferenceData,
    folder: Path,
    before: Checkpoint | None = None,
    on_step: OnStep | None = None,
    *,
    runtime: RuntimeConfig = RUNTIME,
    **changes: Any,
) -> list[LogRow]:
    subject = TrainingSubject(find_denoiser(pipeline), pipeline.scheduler, data, TIME_IDS, before, {"round/seen": 1.0})
    return train_preferences(subject, changed(**changes), folder, runtime, Observers(on_step))


def end_of(folder: Path, log: list[LogRow]) -> Checkpoint:
    """The end of a round, by way of the file that it leaves."""
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None
    save_round_state(checkpoint, folder / "state.safetensors")
    return load_round_state(folder / "state.safetensors", log)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_rank": 2, "ema_decay": 0.9},
        {"retention": 2, "optimizer": "adafactor", "trained_weights": "conditioning"},
    ],
    ids=["full", "lora", "adafactor"],
)
def test_two_rounds_on_the_same_data_are_one_training(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Moments, moving mean, warm-up, schedule and draws go on: the weights are those of one round of as many steps."""
    whole, first, second = (make_pipeline() for _ in range(3))
    settings, data = POLICY | changes, grouped(data)
    log = train(whole, data, tmp_path / "whole", n_steps=6, **settings)
    halves = settings | {"rounds": 2, "n_steps": 3}
    before = end_of(tmp_path / "1", train(first, data, tmp_path / "1", **halves))
    steps: list[int] = []
    in_rounds = train(second, data, tmp_path / "2", before, lambda step, _: steps.append(step), **halves)
    assert steps == [4, 5, 6]
    assert same_weights(whole.unet, second.unet)
    assert not same_weights(whole.unet, first.unet)
    assert [row for row in in_rounds if row["name"] != "round/seen"] == log[1:]
    assert [row["step"] for row in in_rounds if row["name"] == "round/seen"] == [0, 3]
    # 1e-3 after a warm-up of two steps, falling to 0 over all six
    assert values(log, "learning_rate") == pytest.approx([1e-3 * n / 6 for n in (3, 5, 4, 3, 2, 1)])


def test_a_round_that_was_stopped_goes_on_and_changes_no_bit(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    settings, data = POLICY | {"rounds": 2, "n_steps": 3, "checkpoint_every": 1}, grouped(data)
    before = end_of(tmp_path / "1", train(make_pipeline(), data, tmp_path / "1", **settings))
    whole, resumed = make_pipeline(), make_pipeline()
    expected = train(whole, data, tmp_path / "whole", before, **settings)
    for stop in (4, 5):
        with pytest.raises(KeyboardInterrupt):
            train(make_pipeline(), data, tmp_path / "2", before, stop_at(stop), **settings)
    assert train(resumed, data, tmp_path / "2", before, **settings) == expected
    assert same_weights(whole.unet, resumed.unet)


@pytest.mark.parametrize("rank", [0, 2])
def test_sets_are_compared_with_the_policy_that_began_the_round(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, rank: int
) -> None:
    """So g is 0 again at the first step of each round, while retention knows how far the base model is."""
    settings = {"rounds": 2, "n_steps": 3, "n_warmup_steps": 0, "lora_rank": rank, "retention": 1e-3, "beta": 20}
    first, second = make_pipeline(), make_pipeline()
    before = end_of(tmp_path / "1", train(first, data, tmp_path / "1", **settings))
    log = train(second, data, tmp_path / "2", before, **settings)
    spread, loss, departure = (values(log, name) for name in ("g_spread", "loss", "retention"))
    assert len(spread) == 6
    assert spread[0] == spread[3] == 0.0
    assert min(spread[1], spread[2], spread[4], spread[5]) > 1e-6
    assert departure[0] == 0.0
    assert departure[3] > 1e-6
    assert loss[3] == pytest.approx(math.log(2) + 1e-3 * departure[3], rel=1e-5)


def test_micro_batches_change_nothing_beyond_rounding(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    data = grouped(data)
    for objective in ("population-policy", "dgpo"):
        settings = POLICY | {"objective": objective, "n_steps": 2, "retention": 1}
        logs = [
            train(
                make_pipeline(), data, tmp_path / objective / f"{n}",
                runtime=RUNTIME.model_copy(update={"micro_pairs": n}), **settings,
            )
            for n in (0, 1, 2)
        ]  # fmt: skip
        for name in ("loss", "grad_norm", "policy_mse", "retention"):
            assert values(logs[1], name) == pytest.approx(values(logs[0], name), rel=1e-3, abs=1e-6)
            assert values(logs[2], name) == pytest.approx(values(logs[0], name), rel=1e-3, abs=1e-6)


def test_policy_gradients_need_no_reference(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    """The sample with the advantage gets likelier than the one without."""
    log = train(make_pipeline(), grouped(data), tmp_path, n_steps=6, learning_rate=3e-3, **{**POLICY, "beta": 40})
    assert {row["name"] for row in log} == {"round/seen", "loss", "policy_mse", "grad_norm", "learning_rate"}
    assert values(log, "loss")[-1] < values(log, "loss")[0]


def test_a_damaged_state_is_refused(make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path) -> None:
    end_of(tmp_path, train(make_pipeline(), data, tmp_path, n_steps=1, rounds=2))
    whole = (tmp_path / "state.safetensors").read_bytes()
    (tmp_path / "state.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DamagedWeightsError, match=r"state.safetensors holds no end of a round .* train that round again"
    ):
        load_round_state(tmp_path / "state.safetensors", [])
