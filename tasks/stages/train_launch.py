"""Training over several processes: `accelerate launch` from the task, its progress, its errors, its end."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core import errors
from popalign_core.config import RuntimeConfig
from popalign_core.errors import ConfigError, PreemptedError, TrainingError
from popalign_core.training import accelerate
from tasks.common.stage_object import Progress, open_store
from tasks.stages.round_inputs import TrainingRefs
from tasks.stages.train_inputs import DENOISER_PARTS
from tasks.stages.train_view import TrainView

if TYPE_CHECKING:
    from popalign_core.training.checkpoint import LogRow

ERROR_FILE = "error.json"
LOG_FILE = "launch.log"


def launch_training(
    refs: TrainingRefs,
    view: TrainView,
    runtime: RuntimeConfig,
    work: Path,
    on_progress: Progress,
    log_folder: Path | None = None,
) -> "tuple[Any, list[LogRow]]":
    """Train in processes of `accelerate launch`: the trained denoiser, and the log.

    Raises:
        PopAlignError: What the first process raised.
        PreemptedError: On SIGTERM, which is passed on; the processes have saved.
        TrainingError: When the launcher fails without saying why; its last lines are in the message.
    """
    from popalign_core.models.denoisers import find_denoiser
    from popalign_core.models.loading import load_pipeline, resolve_device
    from popalign_core.training.final_weights import load_trained
    from popalign_core.training.preemption import watch_preemption

    work.mkdir(parents=True, exist_ok=True)
    (work / ERROR_FILE).unlink(missing_ok=True)
    job = work / "job.json"
    job.write_text(json.dumps(describe_job(refs, view, runtime, work, log_folder)), encoding="utf-8")
    with watch_preemption() as preemption:
        code = _follow(launch_command(runtime, job), work, view.training.n_steps, on_progress, preemption)
        if code != 0:
            _raise_failure(work, code, preempted=preemption.requested)
    parts = load_pipeline(
        view.model,
        device=resolve_device(runtime.device),
        trained=refs.find_start(open_store(runtime), view.model),
        components=DENOISER_PARTS,
    )
    denoiser = find_denoiser(parts)
    return denoiser, load_trained(denoiser, work, view.training, view.last_step)


def describe_job(
    refs: TrainingRefs, view: TrainView, runtime: RuntimeConfig, work: Path, log_folder: Path | None = None
) -> dict[str, Any]:
    """What a worker needs to know, as JSON."""
    return {
        "refs": asdict(refs),
        "view": view.model_dump(mode="json"),
        "runtime": runtime.model_dump(mode="json"),
        "work": str(work),
        "log_folder": str(log_folder or work),
        "parent": os.getpid(),
    }


def launch_command(runtime: RuntimeConfig, job: Path) -> list[str]:
    """The command line of the launcher.

    Raises:
        ConfigError: When the accelerate configuration is not there.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if runtime.accelerate_config:
        command += ["--config_file", str(accelerate_file(runtime.accelerate_config))]
    else:
        # accelerate's name for several processes on one machine, whatever the device
        command += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if runtime.n_processes > 1:
        command += ["--num_processes", str(runtime.n_processes)]
    # a free port: two trainings on one machine must not meet
    return [*command, "--main_process_port", "0", "-m", "tasks.stages.train_worker", str(job)]


def accelerate_file(name: str) -> Path:
    """The launcher's file of a name: one that ships, or a path.

    Raises:
        ConfigError: When there is none, or it asks for what the trainer cannot do.
    """
    shipped = {path.stem: path for path in Path(accelerate.__path__[0]).glob("*.yaml")}
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise ConfigError(
            f"runtime.accelerate_config {name!r} is neither a file nor one of {', '.join(sorted(shipped))}; "
            "`accelerate config` writes one"
        )
    text = path.read_text(encoding="utf-8")
    if "deepspeed" in "".join(line for line in text.splitlines() if not line.startswith("#")).lower():
        raise ConfigError(
            f"runtime.accelerate_config {name!r} asks for DeepSpeed, whose optimizer state cannot be saved in this "
            "trainer's checkpoints; 'zero2' shards the same things"
        )
    return path


def _follow(command: list[str], work: Path, n_steps: int, on_progress: Progress, preemption: Any) -> int:
    """Run the launcher, hand its progress on, and pass SIGTERM down."""
    log = work / LOG_FILE
    repository = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([repository, os.environ.get("PYTHONPATH", "")])}
    with (
        log.open("w", encoding="utf-8") as lines,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=lines, text=True, env=environment, start_new_session=True
        ) as process,
    ):

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step "):
                    on_progress(int(line.split()[1]), n_steps)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            is_passed_on = False
            while process.poll() is None:
                if preemption.requested and not is_passed_on:
                    process.send_signal(signal.SIGTERM)
                    is_passed_on = True
                reader.join(0.2)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            reader.join()
        return process.wait()


def _raise_failure(work: Path, code: int, *, preempted: bool) -> None:
    try:
        failure = json.loads((work / ERROR_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        failure = None
    if failure is not None:
        raise getattr(errors, failure["type"])(failure["message"])
    if preempted:
        raise PreemptedError(f"SIGTERM before the first step was done; {work} keeps what there is")
    last = "\n".join((work / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise TrainingError(f"`accelerate launch` ended with {code}; the end of {work / LOG_FILE}:\n{last}")
