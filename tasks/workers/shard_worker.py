"""A worker of a fan-out: its share of the cores, its GPU, its cache of loaded models, its end."""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from popalign_core.config import RuntimeConfig

R = TypeVar("R")
T = TypeVar("T")

POLL_S = 0.5
"""How soon a worker process notices that it is not wanted any more."""

_here = threading.local()
"""Of a worker: `place`, and the `claim` on a GPU, a slot's lock that the system releases when the process dies."""

_loaded: dict[tuple[str, int], tuple[Any, Any]] = {}
"""Of this process: device and thread -> what was asked for, and what came of it."""
_loading = threading.Lock()


@dataclass(frozen=True)
class Place:
    """What a worker knows of its fan-out.

    Attributes:
        folder: Shared by the workers of one machine, for their claims; gone when the fan-out is over.
        n_threads: Of torch; 0 shares the machine's cores among the workers.
        n_workers: Of the fan-out.
    """

    folder: str
    n_threads: int
    n_workers: int


def run_job(call: Callable[[], R], place: Place, *, in_process: bool) -> R:
    """The body of a job's task run.

    Args:
        call: The work on one job.
        place: Of the worker.
        in_process: Whether the process is the worker's own.
    """
    _here.place = place
    if in_process:
        _limit_threads(place.n_threads or max(1, (os.cpu_count() or 1) // place.n_workers))
    try:
        return call()
    except SystemExit as error:  # would end the pool's own thread, and the coordinator would wait for ever
        raise RuntimeError(f"the work of a shard called exit({error.code})") from error


def _limit_threads(n: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(n)  # read when torch is imported, which a worker may never do
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(n)


def watch_coordinator(folder: str) -> None:
    """End this pool process as soon as the fan-out or its process is over: a pool waits for jobs, and so for ever."""
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the coordinator too, which ends all
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        while os.path.isdir(folder) and not wait([parent.sentinel], POLL_S):
            pass
        shutil.rmtree(folder, ignore_errors=True)  # a coordinator that was killed left it
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker_device(runtime: RuntimeConfig, n_gpus: int | None = None) -> str:
    """The device of the worker that asks: with several GPUs on its machine one of its own, as long as there are enough.

    Args:
        runtime: Its device is taken as it is, unless it is auto or cuda.
        n_gpus: On this machine; None asks torch.
    """
    if runtime.device not in ("auto", "cuda") or not hasattr(_here, "place"):
        return runtime.device
    if n_gpus is None:
        import torch

        n_gpus = torch.cuda.device_count()
    return runtime.device if n_gpus < 2 else f"cuda:{claim_slot(Path(_here.place.folder)) % n_gpus}"


def load_once(load: Callable[..., T], *asked: Any, runtime: RuntimeConfig, is_shared: bool = False) -> T:
    """What `load(*asked, runtime, device)` gives, loaded once by a worker for all its shards.

    Args:
        load: A function of a module.
        asked: Its first arguments; when they change, all that was loaded before is freed first: both may not fit.
        runtime: Decides the worker's device.
        is_shared: Whether the threads of a device may use it at the same time; tokenizers and detectors may not.
    """
    device, what = worker_device(runtime), (load, asked, runtime)
    user = device, 0 if is_shared or runtime.runner != "threads" else threading.get_ident()
    with _loading:
        for other in [each for each, (before, _) in _loaded.items() if before != what]:
            del _loaded[other]
        if user not in _loaded:
            _loaded[user] = what, load(*asked, runtime, device)
        found: T = _loaded[user][1]
    return found


def count_gpus(runtime: RuntimeConfig) -> int:
    """CUDA devices that a runtime may choose from; 0 where it names one, or none. Imports torch only to count."""
    if runtime.device not in ("auto", "cuda"):
        return 0
    import torch

    return torch.cuda.device_count()


def forget() -> None:
    """Free what this process has loaded for shards."""
    _loaded.clear()


def claim_slot(folder: Path) -> int:
    """The lowest slot that no other worker of a machine holds in their folder; this worker's until its end."""
    from filelock import FileLock, Timeout

    claimed, slot, _ = getattr(_here, "claim", (None, 0, None))
    if claimed == folder:
        return int(slot)
    folder.mkdir(parents=True, exist_ok=True)
    for slot in count():
        lock = FileLock(folder / f"{slot}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _here.claim = (folder, slot, lock)
        return slot
    raise AssertionError  # there is always a next slot
