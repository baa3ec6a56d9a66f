"""What the workers of the fan-out tests do. A module: spawned workers import it."""

import os
import signal
import time
from functools import cache
from pathlib import Path

from popalign_core.config import RuntimeConfig
from popalign_core.errors import MissingWeightsError


@cache
def loaded_by() -> tuple[int, int]:
    """Stands for a model that a worker loads once: which process did, and when."""
    return os.getpid(), time.monotonic_ns()


def square(job: int) -> tuple[int, tuple[int, int]]:
    return job * job, loaded_by()


def slow_square(job: int) -> tuple[int, int]:
    time.sleep(0.3)
    return job * job, os.getpid()


def megabytes(job: int) -> bytes:
    return bytes([job]) * 20_000_000


def describe(job: int) -> dict[str, str | None]:
    names = ("OMP_NUM_THREADS", "PREFECT_API_URL")
    return {name: os.environ.get(name) for name in names}


def claim_device(job: tuple[RuntimeConfig, int]) -> tuple[int, str]:
    from tasks.fanout import worker_device

    time.sleep(0.5)
    return os.getpid(), worker_device(*job)


def die_once(job: tuple[int, str, str]) -> int:
    """Shard `fatal` kills its own process the first time, as the system does when memory runs out."""
    number, folder, fatal = job
    with (Path(folder) / f"{number}.starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    is_first = len((Path(folder) / f"{number}.starts").read_text().splitlines()) == 1
    time.sleep(0.2)
    if (fatal == "always" and number == 2) or (fatal == "once" and is_first and number == 2):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def fail_at_two(job: int) -> int:
    if job == 2:
        raise MissingWeightsError("no weights at shard 2")
    time.sleep(0.05 if job < 2 else 30)
    return job


def work_for_long(job: str) -> None:
    Path(job, str(os.getpid())).touch()
    time.sleep(600)
