"""What the workers of the fan-out tests do. A module: spawned workers import it."""

import os
import signal
import time
from functools import cache
from pathlib import Path

from popalign_core.config import RuntimeConfig
from popalign_core.errors import MissingWeightsError
from tasks.workers import shard_worker
from tasks.workers.shard_worker import worker_device


@cache
def load_once() -> tuple[int, int]:
    """Stands for a model that a worker loads once: which process did, and when."""
    return os.getpid(), time.monotonic_ns()


def square(job: int) -> tuple[int, tuple[int, int], str | None]:
    return job * job, load_once(), os.environ.get("OMP_NUM_THREADS")


def note_start(job: tuple[int, str]) -> int:
    number, folder = job
    Path(folder, f"started-{number}").touch()
    return number


def make_megabytes(job: int) -> bytes:
    return bytes([job]) * 20_000_000


def choose_device(job: tuple[RuntimeConfig, int]) -> str:
    time.sleep(0.3)  # so that the other worker gets a job
    return worker_device(*job)


loads: list[str] = []


def load(job: tuple[RuntimeConfig, str, bool]) -> str:
    config, name, is_shared = job
    return shard_worker.load_once(note_load, name, runtime=config, is_shared=is_shared)


def note_load(name: str, runtime: RuntimeConfig, device: str) -> str:
    loads.append(f"{name} on {device}")
    time.sleep(0.3)  # so that the other worker gets a job
    return name


def die(job: tuple[int, str, int]) -> int:
    """Kills its own process the first times, as the system does when memory runs out."""
    number, folder, n_deaths = job
    time.sleep(0.2)
    with Path(folder, f"starts-{number}").open("a") as starts:
        starts.write("x")
    if Path(folder, f"starts-{number}").stat().st_size <= n_deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def fail(job: tuple[int, str]) -> int:
    """Shard 1 fails as soon as shard 0 was handed over; shard 2 takes its time."""
    number, folder = job
    if number == 2:
        time.sleep(120)
    if number == 1:
        while not Path(folder, "handed-0").exists():
            time.sleep(0.1)
        raise MissingWeightsError("no weights for shard 1")
    return number


def work_for_long(job: str) -> None:
    Path(job, str(os.getpid())).touch()
    time.sleep(600)
