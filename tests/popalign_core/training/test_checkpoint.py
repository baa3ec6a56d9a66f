"""Nothing is lost: resuming, kills, damage, divergence, pre-emption."""

import math
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import skip_with_several_threads
from training_runs import RUNTIME, same_weights, stop_at, values
from training_runs import run as run_four_pairs

from popalign_core.errors import DivergedError, InputError, PreemptedError, StoreError, TrainingError
from popalign_core.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from popalign_core.training.data import PreferenceData

run = partial(run_four_pairs, n_pairs=2)
"""Nothing here depends on how much a step learns from."""


def run_and_die(pipeline: Any, data: PreferenceData, folder: Path, last: int, **changes: Any) -> int:
    """Train in a process that gets SIGKILL after a step; what it ended with."""

    def die(step: int, terms: dict[str, float]) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    skip_with_several_threads()
    child = os.fork()
    if child == 0:
        try:
            run(pipeline, data, folder, die, **changes)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_rank": 2},
        {"objective": "sft"},
        {"objective": "diffusion-dpo", "weight_decay": 0.1},
        {"normaliser": "ema", "retention": 1},
        {"normaliser": "anchor", "preserve_preferred": True},
    ],
    ids=["popalign", "lora", "sft", "diffusion-dpo", "ema", "anchor"],
)
def test_resuming_changes_no_bit(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole, stopped, resumed = (make_pipeline() for _ in range(3))
    expected = run(whole, data, tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, data, tmp_path / "run", stop_at(3), **changes)
    steps: list[int] = []
    torch.manual_seed(99)  # the global generator has no say
    log = run(resumed, data, tmp_path / "run", lambda step, _: steps.append(step), **changes)
    assert steps == [3, 4, 5, 6]
    assert log == expected
    assert same_weights(whole.unet, resumed.unet)


def test_a_finished_run_is_not_run_again(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    first, again = make_pipeline(), make_pipeline()
    steps: list[int] = []
    log = run(first, data, tmp_path)
    assert run(again, data, tmp_path, lambda step, _: steps.append(step)) == log
    assert steps == []
    assert same_weights(first.unet, again.unet)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(
    ("last", "changes"),
    [
        (5, {}),
        (3, {"lora_rank": 2, "ema_decay": 0.9}),
        *(pytest.param(step, {"lora_rank": rank}, marks=pytest.mark.slow) for step in (1, 2, 4, 6) for rank in (0, 2)),
    ],
    ids=str,
)
def test_kill_9_and_resume_changes_no_bit(
    make_pipeline: Callable[[], Any],
    data: PreferenceData,
    tmp_path: Path,
    last: int,
    changes: dict[str, Any],
) -> None:
    assert run_and_die(make_pipeline(), data, tmp_path / "run", last, **changes) == -signal.SIGKILL
    # what a kill in the middle of a write leaves behind
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "checkpoint-0000005.partial").write_bytes(b"half a file")
    whole, resumed = make_pipeline(), make_pipeline()
    steps: list[int] = []
    log = run(resumed, data, tmp_path / "run", lambda step, _: steps.append(step), **changes)
    # the last checkpoint but for the step that was killed: 2 or 4 (on_step comes after the save)
    assert steps == list(range(last - last % 2 + 1, 7))
    assert log == run(whole, data, tmp_path / "whole", **changes)
    assert same_weights(whole.unet, resumed.unet)


def test_nan_loss_stops_and_keeps_the_checkpoint(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    pipeline = make_pipeline()

    def poison(step: int, terms: dict[str, float]) -> None:
        if step == 2:
            pipeline.unet.conv_in.weight.data.fill_(math.nan)

    with pytest.raises(
        DivergedError, match=r"loss is nan at step 3: check the latents, .* keeps the checkpoint of step 2"
    ):
        run(pipeline, data, tmp_path, poison)
    saved = torch.load(checkpoint_path(tmp_path, 2), weights_only=True)
    assert saved["step"] == 2
    assert all(bool(weight.isfinite().all()) for weight in saved["weights"].values())


def test_a_full_disk_is_named_and_the_checkpoint_before_is_kept(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, make_disk: Callable[[str], Path]
) -> None:
    whole = make_pipeline()
    expected = run(whole, data, tmp_path / "whole")
    size = checkpoint_path(tmp_path / "whole", 6).stat().st_size
    disk = make_disk(f"{size * 3 // 2}")
    with pytest.raises(
        StoreError, match=r"cannot write checkpoint .*-0000004\.pt: .*No space left on device; free some"
    ):
        run(make_pipeline(), data, disk / "run")
    left = sorted(path.name for path in (disk / "run").iterdir())
    assert left == ["checkpoint-0000002.pt", "checkpoint-0000002.sha256"]
    subprocess.run(["mount", "-o", f"remount,size={size * 4}", str(disk)], check=True)
    resumed = make_pipeline()
    assert run(resumed, data, disk / "run") == expected
    assert same_weights(whole.unet, resumed.unet)


def test_a_loss_that_is_never_finite_promises_no_checkpoint(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    pipeline = make_pipeline()
    pipeline.unet.conv_in.weight.data.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"loss is nan at step 1: .*; no checkpoint was written yet$"):
        run(pipeline, data, tmp_path)
    assert list_checkpoints(tmp_path) == []


def test_infinite_gradient_stops_before_the_weights_move(
    tiny_pipeline: Any, data: PreferenceData, tmp_path: Path
) -> None:
    before = tiny_pipeline.unet.conv_out.weight.detach().clone()
    tiny_pipeline.unet.conv_in.weight.requires_grad_(True).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match=r"gradient norm is (nan|inf) at step 1: .*learning_rate \(0.001\)"):
        run(tiny_pipeline, data, tmp_path)
    assert torch.equal(tiny_pipeline.unet.conv_out.weight, before)
    assert list_checkpoints(tmp_path) == []


def test_another_runs_checkpoint_is_refused(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    pipeline = make_pipeline()
    run(pipeline, data, tmp_path, n_steps=1)
    with pytest.raises(InputError, match="belongs to another configuration or other data"):
        run(make_pipeline(), data, tmp_path, n_steps=1, beta=21)
    with pytest.raises(InputError, match="belongs to another configuration or other data"):
        run(make_pipeline(), replace(data, latents=data.latents + 1), tmp_path, n_steps=1)
    # the trained UNet is not the base: it would become its own reference
    with pytest.raises(InputError, match="belongs to another configuration or other data"):
        run(pipeline, data, tmp_path, n_steps=1)


def test_a_damaged_checkpoint_is_named(make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path) -> None:
    run(make_pipeline(), data, tmp_path, n_steps=1)
    whole = checkpoint_path(tmp_path, 1).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"torn", whole[: len(whole) // 2], bytes(flipped)):
        checkpoint_path(tmp_path, 1).write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"is damaged; delete it to train from the start"):
            run(make_pipeline(), data, tmp_path, n_steps=1)


def test_the_newest_checkpoints_are_kept_and_a_damaged_one_falls_back(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep = RUNTIME.model_copy(update={"keep_checkpoints": 2})
    whole = make_pipeline()
    expected = run(whole, data, tmp_path / "whole", n_steps=8)
    with pytest.raises(KeyboardInterrupt):
        run(make_pipeline(), data, tmp_path / "run", stop_at(7), n_steps=8, runtime=keep)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [
        "checkpoint-0000006.pt",
        "checkpoint-0000004.pt",
    ]
    checkpoint_path(tmp_path / "run", 6).write_bytes(b"torn")
    resumed, steps = make_pipeline(), list[int]()
    log = run(resumed, data, tmp_path / "run", lambda step, _: steps.append(step), n_steps=8, runtime=keep)
    assert steps == [5, 6, 7, 8]
    assert (
        "checkpoint-0000006.pt (does not match its checksum) is damaged; resuming from checkpoint-0000004.pt"
        in caplog.text
    )
    assert log == expected
    assert same_weights(whole.unet, resumed.unet)


def test_a_preferred_error_that_runs_away_stops(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    with pytest.raises(
        DivergedError,
        match=r"the preferred error is \d+\.\d+ times the reference's at step \d+, beyond "
        r"max_error_ratio 1\.5: .* lower learning_rate \(0\.05\) or beta \(20\); .* keeps the checkpoint",
    ):
        run(make_pipeline(), data, tmp_path, learning_rate=0.05, n_steps=40, max_error_ratio=1.5, checkpoint_every=1)
    newest = torch.load(list_checkpoints(tmp_path)[0], weights_only=True)
    assert newest["running"]["error_ratio"] <= 1.5
    assert all(bool(weight.isfinite().all()) for weight in newest["weights"].values())


def test_rolling_back_halves_the_rate_and_is_as_resumable(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    settings = {"learning_rate": 0.02, "n_steps": 12, "max_error_ratio": 1.5, "on_divergence": "rollback"}
    whole = make_pipeline()
    log = run(whole, data, tmp_path / "whole", **settings)
    scales = values(log, "rollback")
    assert scales[:1] == [0.5]
    assert values(log, "learning_rate")[-1] == pytest.approx(0.02 * scales[-1])
    assert [row["step"] for row in log if row["name"] == "loss"] == list(range(1, 13))
    with pytest.raises(KeyboardInterrupt):
        run(make_pipeline(), data, tmp_path / "run", stop_at(11), **settings)
    resumed = make_pipeline()
    assert run(resumed, data, tmp_path / "run", **settings) == log
    assert same_weights(whole.unet, resumed.unet)


def test_rolling_back_ends_after_three(make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path) -> None:
    pipeline = make_pipeline()

    def poison(step: int, terms: dict[str, float]) -> None:
        pipeline.unet.conv_in.register_buffer("bad", torch.zeros(1), persistent=False)
        pipeline.unet.conv_in.weight.register_hook(lambda gradient: gradient * math.nan)

    with pytest.raises(DivergedError, match=r"gradient norm is nan at step 3: .* keeps the checkpoint of step 2"):
        run(pipeline, data, tmp_path, lambda step, _: poison(step, {}) if step == 2 else None, on_divergence="rollback")
    newest = torch.load(list_checkpoints(tmp_path)[0], weights_only=True)
    assert newest["running"]["n_rollbacks"] == 3
    assert newest["running"]["learning_rate_scale"] == 0.125


@pytest.mark.parametrize("last", [4, 6])
def test_sigterm_saves_and_the_same_call_goes_on(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, last: int
) -> None:
    whole, resumed = make_pipeline(), make_pipeline()
    expected = run(whole, data, tmp_path / "whole")
    heard: list[int] = []
    earlier = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with pytest.raises(
            PreemptedError, match=rf"SIGTERM at step {last} of 6: .* checkpoint of step {last};"
        ) as error:
            # it comes while the step is under way, and that is finished
            run(
                make_pipeline(),
                data,
                tmp_path / "run",
                lambda step, _: os.kill(os.getpid(), signal.SIGTERM) if step == last - 1 else None,
            )
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert error.value.exit_code == 143
    # the host's own handler (Prefect's) gets it after all
    assert heard == [1]
    assert checkpoint_path(tmp_path / "run", last).exists()
    assert run(resumed, data, tmp_path / "run") == expected
    assert same_weights(whole.unet, resumed.unet)


def test_a_flipped_bit_anywhere_in_the_directory_of_the_newest_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read as it was written, or the one before is: never an error, never other numbers."""

    def at(step: int) -> Checkpoint:
        weights = {"a": torch.arange(6.0) + step, "b": torch.ones(2)}
        return Checkpoint(step, weights, {"state": {}}, {}, {}, {"z": 0.5}, [{"step": step}], "mine")

    older, newest = at(1), at(2)
    save_checkpoint(tmp_path, older, keep=2)
    save_checkpoint(tmp_path, newest, keep=2)
    path = checkpoint_path(tmp_path, 2)
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")  # the central directory, up to the end
    n_fallen = 0
    for place in range(start, len(whole), 2):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(bytes(flipped))
        found = load_checkpoint(tmp_path, "mine")
        assert found is not None
        expected = newest if found.step == 2 else older
        assert all(torch.equal(found.weights[name], value) for name, value in expected.weights.items()), place
        assert (found.log, found.running) == (expected.log, expected.running)
        n_fallen += found is not None and found.step == 1
    assert n_fallen == len(range(start, len(whole), 2))
    path.write_bytes(whole)
    assert (load_checkpoint(tmp_path, "mine") or older).step == 2
    assert "resuming from checkpoint-0000001.pt" in caplog.text
    path.unlink()
    assert {found.name for found in tmp_path.iterdir()} >= {"checkpoint-0000001.pt", "checkpoint-0000001.sha256"}
    checkpoint_path(tmp_path, 1).write_bytes(whole[:start])
    with pytest.raises(TrainingError, match="is damaged; delete it to train from the start"):
        load_checkpoint(tmp_path, "mine")
