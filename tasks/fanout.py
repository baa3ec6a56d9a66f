"""A function over the shards of a stage, on Prefect's task runners: a dead worker costs the job it was at, no more."""

import os
import shutil
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from popalign_core.config import RuntimeConfig
from popalign_core.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from prefect import Task
    from prefect.futures import PrefectWrappedFuture

T = TypeVar("T")
R = TypeVar("R")

MAX_DEATHS = 3
"""A job whose worker died so often is given up."""
POLL_S = 0.5
"""How soon a worker process notices that it is not wanted any more."""

_here = threading.local()
"""Of a worker: `place`, and the `claim` on a GPU, a slot's lock that the system releases when the process dies."""


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


class _WorkersDied(Exception):
    """Some jobs of a round are left: what killed the last of their workers is the cause."""


def fan_out(
    work: Callable[[T], R],
    jobs: Mapping[int, T],
    runtime: RuntimeConfig,
    on_result: Callable[[int, R], None],
    *,
    stage: str = "sample",
) -> None:
    """Run `work` on each job; hand each result over as soon as it is there, once, in the caller's thread.

    At most two jobs a worker are under way, so the caller's memory is bounded. Except for `inline` and `threads`, work
    and jobs are pickled; a worker process keeps what `work` caches in its module from job to job.

    Args:
        work: Called in a worker.
        jobs: Shard number -> what `work` is called with.
        runtime: Who runs it: runner, n_workers, runner_address.
        on_result: Called with a shard's number and what `work` returned.
        stage: Name of the flow run and its task runs.

    Raises:
        ConfigError: When the runner is not installed.
        ResourceError: When a job's worker died three times.
        Exception: Whatever `work` or `on_result` raises, as it is. Jobs under way are stopped (a thread ends its own).
    """
    if runtime.runner == "inline":
        for number, job in jobs.items():
            on_result(number, work(job))
        return
    # Only the numbers: a job may be made when it is asked for, and all of them fill the memory.
    left, deaths = dict.fromkeys(jobs), Counter[int]()
    # Ray and Dask try again themselves, and know whose worker it was that died.
    allowed = MAX_DEATHS if runtime.runner == "processes" else 1
    while left:
        # With a pool of processes all jobs under way die: one that did so twice runs alone, so that it proves itself.
        suspects = [number for number in left if 0 < allowed - 1 == deaths[number]]
        n_workers = 1 if suspects else runtime.n_workers
        with TemporaryDirectory(prefix="popalign-", ignore_cleanup_errors=True) as folder:
            place = Place(folder, runtime.n_threads, runtime.n_workers)
            todo = deque(suspects or left)
            window = n_workers if suspects or runtime.runner == "dask" else 2 * n_workers
            turn = _Round(work, jobs, left, todo, window, on_result, stage, runtime, place)
            try:
                turn.start(n_workers)
            except _WorkersDied as error:
                deaths.update(turn.died)
                _give_up(error, [number for number in turn.died if deaths[number] >= allowed], stage, runtime)


def _give_up(error: Exception, numbers: list[int], stage: str, runtime: RuntimeConfig) -> None:
    if numbers:
        raise ResourceError(
            f"{stage} shard {', '.join(map(str, sorted(numbers)))}: the worker of runner {runtime.runner!r} died "
            f"{MAX_DEATHS} times ({error.__cause__}); the usual reason is memory: set runtime.batch_size below "
            f"{runtime.batch_size} or n_workers below {runtime.n_workers}, and look at the system's log"
        ) from error


@dataclass
class _Round:
    """One flow run: jobs on a fresh task runner until all are done or a worker's death ends it."""

    work: Callable[[Any], Any]
    jobs: Mapping[int, Any]
    left: dict[int, None]
    todo: deque[int]
    window: int
    on_result: Callable[[int, Any], None]
    stage: str
    runtime: RuntimeConfig
    place: Place
    died: list[int] = field(default_factory=list)
    running: dict[Any, int] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Prefect sends the flow to every worker; what the coordinator holds is not for them

    def start(self, n_workers: int) -> None:
        from prefect import Flow
        from prefect.settings import (
            PREFECT_SERVER_ANALYTICS_ENABLED,
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
            temporary_settings,
        )

        flow = Flow(
            self.run,
            name="popalign-shards",
            flow_run_name=f"{self.stage} shards",
            task_runner=_make_runner(self.runtime, n_workers, self.place),
            persist_result=False,
            validate_parameters=False,
        )
        # A server of its own, where none is configured, takes its time on a busy machine and calls nobody.
        defaults = {PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120, PREFECT_SERVER_ANALYTICS_ENABLED: False}
        with temporary_settings(set_defaults=defaults):
            flow()

    def run(self) -> None:
        """The flow's body."""
        try:
            with _server_for_workers(), _job_options(self.runtime):
                self._collect()
        except BaseException:
            self._stop()
            raise

    def _collect(self) -> None:
        task = _make_task()
        done: SimpleQueue[PrefectWrappedFuture[Any, Any]] = SimpleQueue()
        cause: Exception | None = None
        while self.todo or self.running:
            while self.todo and len(self.running) < self.window:
                self._submit(task, self.todo.popleft(), done)
            future = done.get()
            number = self.running.pop(future)
            try:
                self._hand_over(number, future)
            except _deaths(self.runtime) as error:
                self.died.append(number)
                self.todo.clear()
                cause = error
            del future  # and with it the result, before the next one comes
        if cause is not None:
            raise _WorkersDied(f"workers died at shards {self.died}") from cause

    def _submit(self, task: "Task[..., Any]", number: int, done: Any) -> None:
        call = partial(self.work, self.jobs[number])  # Prefect looks into lists and records, not into this
        named = task.with_options(task_run_name=f"{self.stage} shard {number:05d}")
        future = named.submit(call, self.place, in_process=self.runtime.runner != "threads")
        self.running[future] = number
        future.add_done_callback(done.put)

    def _hand_over(self, number: int, future: Any) -> None:
        result = future.result()
        self.on_result(number, result)
        del self.left[number]

    def _stop(self) -> None:
        """Nobody waits for what is under way."""
        if self.runtime.runner == "processes":
            shutil.rmtree(self.place.folder, ignore_errors=True)
        for future in self.running:
            if self.runtime.runner == "ray":
                import ray

                ray.cancel(future.wrapped_future, force=True)
            elif self.runtime.runner == "dask":
                future.wrapped_future.cancel(force=True)


def _make_runner(runtime: RuntimeConfig, n_workers: int, place: Place) -> Any:
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    address = runtime.runner_address
    try:
        if runtime.runner == "threads":
            return ThreadPoolTaskRunner(max_workers=n_workers)
        if runtime.runner == "processes":
            return ProcessPoolTaskRunner(max_workers=n_workers, initializer=_watch, initargs=(place.folder,))
        if runtime.runner == "ray":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            from prefect_ray.task_runners import RayTaskRunner

            return RayTaskRunner(address or "local", init_kwargs=None if address else _local_ray(n_workers))
        from prefect_dask.task_runners import DaskTaskRunner

        return DaskTaskRunner(address=address, cluster_kwargs=None if address else _local_dask(n_workers))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"runner {runtime.runner!r} needs {error.name}, which is not installed; "
            f"pip install popalign[{runtime.runner}], or set runtime.runner to processes"
        ) from error


def _local_ray(n_workers: int) -> dict[str, Any]:
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",  # else a job that asks for no GPU sees none
    }
    return {
        "num_cpus": n_workers,
        "include_dashboard": False,
        "runtime_env": {"env_vars": environment},
        "_system_config": {"task_oom_retries": MAX_DEATHS - 1},  # for ever by default
    }


def _local_dask(n_workers: int) -> dict[str, Any]:
    return {
        "n_workers": n_workers,
        "threads_per_worker": 1,
        "memory_limit": 0,  # by default a worker is killed beyond its share of memory: that of one core
        "dashboard_address": "127.0.0.1:0",
        "scheduler_kwargs": {"allowed_failures": MAX_DEATHS - 1},
    }


@contextmanager
def _server_for_workers() -> Iterator[None]:
    """Send the address of the flow run's server along: without one each worker would start a server of its own."""
    from prefect.context import FlowRunContext
    from prefect.settings import PREFECT_API_URL, temporary_settings

    context = FlowRunContext.get()
    assert context is not None
    with temporary_settings({PREFECT_API_URL: str(context.client.api_url)}):
        yield


def _job_options(runtime: RuntimeConfig) -> Any:
    """Ray: retries and, on a cluster that others may use too, a GPU a job; on this machine workers claim theirs."""
    if runtime.runner != "ray":
        return nullcontext()
    from prefect_ray.context import remote_options

    on_gpu = runtime.runner_address is not None and _wants_cuda(runtime.device)
    return remote_options(max_retries=MAX_DEATHS - 1, num_gpus=int(on_gpu))


def _wants_cuda(device: str) -> bool:
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _deaths(runtime: RuntimeConfig) -> tuple[type[Exception], ...]:
    """What says that a worker died, not that `work` failed."""
    if runtime.runner == "ray":
        from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError

        return (WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
    if runtime.runner == "dask":
        from distributed import KilledWorker

        return (KilledWorker,)
    return (BrokenProcessPool,)


def _make_task() -> "Task[..., Any]":
    from prefect import Task
    from prefect.cache_policies import NO_CACHE

    return Task(
        _run_job, name="popalign-shard", cache_policy=NO_CACHE, persist_result=False, cache_result_in_memory=False
    )


def _run_job(call: Callable[[], R], place: Place, *, in_process: bool) -> R:
    """In a worker."""
    _here.place = place
    if in_process:
        _limit_threads(place.n_threads or max(1, (os.cpu_count() or 1) // place.n_workers))
    return call()


def _limit_threads(n: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(n)  # read when torch is imported, which a worker may never do
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(n)


def _watch(folder: str) -> None:
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
