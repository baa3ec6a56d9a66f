"""Training in two processes: they train what one does, and nothing of it is lost.

`accelerate launch` starts processes that import for ten seconds each: it is here where it is what is tested. Elsewhere
the same workers are forked off the test.
"""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pytest
import torch
from forking import skip_with_several_threads

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError, PopAlignError, TrainingError
from popalign_core.models.loading import load_pipeline
from popalign_core.training.checkpoint import list_checkpoints
from storage.store import ArtifactRef
from tasks.common.stage_object import no_progress, open_store
from tasks.stages import train_launch, train_worker
from tasks.stages.round_inputs import TrainingRefs
from tasks.stages.train_inputs import run_training
from tasks.stages.train_launch import launch_command, launch_training
from tasks.stages.train_view import TrainView


@pytest.fixture
def refs(give_artifacts: Callable[[str], dict[str, ArtifactRef]]) -> TrainingRefs:
    found = give_artifacts("preferences")
    return TrainingRefs(found["preferences"], found["sample"], found["identities"], found["attributes"])


def training(config: PipelineConfig, **changes: Any) -> TrainView:
    settings = config.training.model_copy(
        update={"learning_rate": 1e-3, "n_steps": 6, "checkpoint_every": 2, **changes}
    )
    refs = {"attributes": ArtifactRef("attributes", "read")}
    return TrainView.of(config.model_copy(update={"training": settings}), refs)


def weights(denoiser: Any) -> dict[str, torch.Tensor]:
    return {name: weight.float() for name, weight in denoiser.state_dict().items()}


def as_table(log: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(log).pivot(index="step", columns="name", values="value")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task's two workers are forked off this process, with what the launcher would tell them."""

    def follow(command: list[str], work: Path, *_: Any) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [fork_worker(rank, port, work / "job.json") for rank in (0, 1)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return max(codes, key=abs)

    monkeypatch.setattr(train_launch, "_follow", follow)


def fork_worker(rank: int, port: int, job: Path) -> int:
    from accelerate.state import AcceleratorState

    skip_with_several_threads()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            AcceleratorState._reset_state(reset_partial_state=True)
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in told.items()}, MASTER_ADDR="127.0.0.1")
            code = train_worker.main(job)
        finally:
            os._exit(code)
    return child


def drive(
    refs: TrainingRefs, view: TrainView, runtime: RuntimeConfig, work: Path, kill_at: int = 0
) -> tuple[int, TextIO]:
    """The task in a process of its own, forked off this one, as a worker runs it; after some step it may kill itself.

    Returns:
        Its number, and the lines that it says: the steps, and at last what went wrong.
    """
    ours, theirs = os.pipe()
    skip_with_several_threads()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with os.fdopen(theirs, "w", buffering=1) as said:

                def tell(step: int, total: int) -> None:
                    said.write(f"{step}\n")
                    if step == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)

                try:
                    launch_training(refs, view, runtime, work, tell)
                    code = 0
                except PopAlignError as error:
                    said.write(f"{error}\n")
                    code = error.exit_code
        finally:
            os._exit(code)
    os.close(theirs)
    return child, os.fdopen(ours)


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def is_training(work: Path) -> bool:
    """Whether any process works on the job in a folder."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(work / "job.json") in path.read_text():
                return True
    return False


WAYS: list[dict[str, Any]] = [
    {"normaliser": "batch"},
    {"normaliser": "zero", "lora_rank": 2},
    {"objective": "set-dpo", "retention": 1.0},
    {"objective": "diffusion-kto"},
    {"objective": "sft"},
]


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("changes", WAYS, ids=str)
def test_two_processes_do_what_one_does(
    refs: TrainingRefs,
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    config = training(tiny_config, **changes)
    one = run_training(open_store(tiny_runtime), refs, config, tiny_runtime, tmp_path / "one", no_progress)
    runtime = tiny_runtime.model_copy(update={"n_processes": 2})
    two = launch_training(refs, config, runtime, tmp_path / "two", no_progress)
    ours, theirs = as_table(one[1]), as_table(two[1])
    pd.testing.assert_frame_equal(ours.head(1), theirs.head(1), rtol=1e-4, atol=1e-7)
    pd.testing.assert_frame_equal(ours, theirs, rtol=5e-3, atol=1e-6)
    # Adam divides by the gradient's size: where that is rounding, so is the direction; not on the average
    base = weights(load_pipeline(config.model, device=torch.device("cpu")).unet)
    # of an adapter, the half that starts at zero
    first = {name: weight for name, weight in weights(one[0]).items() if name in base or "lora_B" in name}
    second = weights(two[0])
    moved = sum(float((weight - base.get(name, 0)).abs().sum()) for name, weight in first.items())
    apart = sum(float((weight - second[name]).abs().sum()) for name, weight in first.items())
    assert moved > 0
    assert apart < 0.01 * moved


@pytest.mark.parametrize("lora_rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_killed_then_preempted_then_resumed_changes_no_bit(
    refs: TrainingRefs,
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    lora_rank: int,
) -> None:
    """The task is killed with -9 and its processes end; SIGTERM to the task saves and has a code of its own."""
    n_steps = 30
    config = training(tiny_config, n_steps=n_steps, checkpoint_every=5, ema_decay=0.9, lora_rank=lora_rank)
    runtime = tiny_runtime.model_copy(update={"n_processes": 2})
    work = tmp_path / "run"
    killed, said = drive(refs, config, runtime, work, kill_at=6)
    with said:
        assert said.read().split() == ["1", "2", "3", "4", "5", "6"]
    assert end_of(killed) == -signal.SIGKILL
    wait_for(lambda: not is_training(work), "the orphans to end")
    n_done = int(list_checkpoints(work)[0].stem[-7:])
    assert 5 <= n_done < n_steps
    preempted, said = drive(refs, config, runtime, work)
    with said:
        assert said.readline() == f"{n_done + 1}\n"
        os.kill(preempted, signal.SIGTERM)
        rest = said.read()
    assert end_of(preempted) == 143
    step = int(re.match(rf"SIGTERM at step (\d+) of {n_steps}: ", rest.splitlines()[-1])[1])  # type: ignore[index]
    assert list_checkpoints(work)[0].name == f"checkpoint-{step:07d}.pt"
    assert n_done < step < n_steps
    request.getfixturevalue("forked")
    resumed = launch_training(refs, config, runtime, work, no_progress)
    whole = launch_training(refs, config, runtime, tmp_path / "whole", no_progress)
    assert resumed[1] == whole[1]
    theirs = weights(whole[0])
    assert all(torch.equal(weight, theirs[name]) for name, weight in weights(resumed[0]).items())


@pytest.mark.usefixtures("forked")
def test_errors_of_the_processes_reach_the_task(
    refs: TrainingRefs, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    runtime = tiny_runtime.model_copy(update={"n_processes": 2})
    with pytest.raises(ConfigError, match=r"n_pairs is 3: 2 processes with micro_pairs 0 do not divide it"):
        launch_training(refs, training(tiny_config, n_pairs=3), runtime, tmp_path / "odd", no_progress)


def test_what_the_launcher_cannot_read_is_refused(
    refs: TrainingRefs, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    runtime = tiny_runtime.model_copy(update={"n_processes": 2})
    absent = runtime.model_copy(update={"accelerate_config": "nowhere.yaml"})
    with pytest.raises(ConfigError, match=r"'nowhere\.yaml' is neither a file nor one of ddp, fsdp2, zero2;"):
        launch_command(absent, tmp_path / "job.json")
    deep = tmp_path / "deep.yaml"
    deep.write_text("distributed_type: DEEPSPEED\n")
    with pytest.raises(ConfigError, match=r"asks for DeepSpeed, .*'zero2' shards the same"):
        launch_command(runtime.model_copy(update={"accelerate_config": str(deep)}), tmp_path / "job.json")
    broken = tmp_path / "broken.yaml"
    broken.write_text("compute_environment: nonsense\n")
    odd = runtime.model_copy(update={"accelerate_config": str(broken)})
    with pytest.raises(TrainingError, match=r"`accelerate launch` ended with 1; the end of .*launch\.log:"):
        launch_training(refs, training(tiny_config), odd, tmp_path / "broken", no_progress)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [("fsdp2", {"normaliser": "batch"}), ("fsdp2", {"lora_rank": 2, "ema_decay": 0.9}), ("zero2", {"ema_decay": 0.9})],
    ids=["full", "lora", "zero2"],
)
def test_shards_train_what_one_process_does_and_resume(
    refs: TrainingRefs,
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
    name: str,
    changes: dict[str, Any],
) -> None:
    """FSDP2 by its shipped configuration, on two CPU processes."""
    sharded = tiny_runtime.model_copy(update={"n_processes": 2, "accelerate_config": name})
    config = training(tiny_config, **changes)
    one = run_training(open_store(tiny_runtime), refs, config, tiny_runtime, tmp_path / "one", no_progress)
    two = launch_training(refs, config, sharded, tmp_path / "two", no_progress)
    pd.testing.assert_frame_equal(as_table(one[1]), as_table(two[1]), rtol=5e-3, atol=1e-6)
    # the last checkpoint away: the run goes on from the one before, and ends the same
    list_checkpoints(tmp_path / "two")[0].unlink()
    steps: list[int] = []
    again = launch_training(refs, config, sharded, tmp_path / "two", lambda step, total: steps.append(step))
    assert steps == [5, 6]
    assert again[1] == two[1]
    theirs = weights(two[0])
    assert all(torch.equal(weight, theirs[name]) for name, weight in weights(again[0]).items())
