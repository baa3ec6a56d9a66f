"""`accelerate launch` from the task: two real processes train what one does, and nothing of it is lost."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError, TrainingError
from popalign_core.sampling.models import load_pipeline
from popalign_core.training.checkpoint import list_checkpoints
from storage.store import ArtifactRef
from tasks.launch import describe_job, launch_command, launch_training
from tasks.stage import no_progress, open_store
from tasks.training_inputs import TrainingRefs, run_training
from tasks.training_view import TrainView


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


DRIVER = """
import json, sys
from pathlib import Path
from popalign_core.config import RuntimeConfig
from popalign_core.errors import PopAlignError
from storage.store import ArtifactRef
from tasks.launch import launch_training
from tasks.training_inputs import TrainingRefs
from tasks.training_view import TrainView

said = json.loads(Path(sys.argv[1]).read_text())
refs = TrainingRefs(**{name: ArtifactRef(**ref) for name, ref in said["refs"].items() if ref})
view, runtime = TrainView.model_validate(said["view"]), RuntimeConfig.model_validate(said["runtime"])
try:
    launch_training(refs, view, runtime, Path(said["work"]), lambda step, total: print(step, flush=True))
except PopAlignError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def drive(refs: TrainingRefs, view: TrainView, runtime: RuntimeConfig, work: Path) -> subprocess.Popen[str]:
    """The task in a process of its own, as a worker runs it."""
    job = work.with_suffix(".json")
    job.write_text(json.dumps(describe_job(refs, view, runtime, work)))
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(job)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    )


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


BOTH_WAYS = [{"normaliser": "batch"}, {"normaliser": "zero", "lora_rank": 2}]
MORE_WAYS = [{"objective": "set-dpo", "retention": 1.0}, {"objective": "diffusion-kto"}, {"objective": "sft"}]


@pytest.mark.parametrize(
    "changes", [*BOTH_WAYS, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE_WAYS)], ids=str
)
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
    steps: list[int] = []
    two = launch_training(refs, config, runtime, tmp_path / "two", lambda step, total: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6]
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
def test_kill_9_of_the_task_ends_the_processes_and_a_rerun_changes_no_bit(
    refs: TrainingRefs, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path, lora_rank: int
) -> None:
    config = training(tiny_config, n_steps=40, checkpoint_every=4, ema_decay=0.9, lora_rank=lora_rank)
    runtime = tiny_runtime.model_copy(update={"n_processes": 2})
    killed = drive(refs, config, runtime, tmp_path / "killed")
    wait_for(lambda: bool(list_checkpoints(tmp_path / "killed")), "a checkpoint")
    killed.kill()
    killed.communicate()
    wait_for(lambda: not is_training(tmp_path / "killed"), "the orphans to end")
    n_done = int(list_checkpoints(tmp_path / "killed")[0].stem[-7:])
    assert 4 <= n_done < 40
    steps: list[int] = []
    resumed = launch_training(refs, config, runtime, tmp_path / "killed", lambda step, total: steps.append(step))
    whole = launch_training(refs, config, runtime, tmp_path / "whole", no_progress)
    assert steps[0] == n_done + 1
    assert resumed[1] == whole[1]
    theirs = weights(whole[0])
    assert all(torch.equal(weight, theirs[name]) for name, weight in weights(resumed[0]).items())


def test_sigterm_saves_and_has_its_own_code(
    refs: TrainingRefs, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    config = training(tiny_config, n_steps=400, checkpoint_every=400)
    preempted = drive(refs, config, tiny_runtime.model_copy(update={"n_processes": 2}), tmp_path / "run")
    assert preempted.stdout is not None
    assert preempted.stdout.readline() == "1\n"
    preempted.send_signal(signal.SIGTERM)
    rest, _ = preempted.communicate(timeout=120)
    assert preempted.returncode == 143
    last = rest.splitlines()[-1]
    step = int(re.match(r"SIGTERM at step (\d+) of 400: ", last)[1])  # type: ignore[index]
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [f"checkpoint-{step:07d}.pt"]


def test_errors_of_the_processes_reach_the_task(
    refs: TrainingRefs, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    runtime = tiny_runtime.model_copy(update={"n_processes": 2})
    with pytest.raises(ConfigError, match=r"n_pairs is 3: 2 processes with micro_pairs 0 do not divide it"):
        launch_training(refs, training(tiny_config, n_pairs=3), runtime, tmp_path / "odd", no_progress)
    absent = runtime.model_copy(update={"accelerate_config": "nowhere.yaml"})
    with pytest.raises(ConfigError, match=r"'nowhere\.yaml' is no file and none of ddp, fsdp2, zero2;"):
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
