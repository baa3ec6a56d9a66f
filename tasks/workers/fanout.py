"""A function over the shards of a stage, on Prefect's task runners: a dead worker costs only its own job."""

import shutil
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from popalign_core.config import RuntimeConfig
from popalign_core.errors import ResourceError
from popalign_core.models.quiet import hide_prefects_console
from tasks.workers.prefect_server import server_errors
from tasks.workers.runners import MAX_DEATHS, death_signs, job_options, make_runner, server_for_workers, start_server
from tasks.workers.shard_worker import Place, run_job

if TYPE_CHECKING:
    from prefect import Task
    from prefect.futures import PrefectWrappedFuture

T = TypeVar("T")
R = TypeVar("R")


class _WorkersDied(Exception):
    """Some jobs of a round are left: what killed the last of their workers is the cause."""


def fan_out(
    work: Callable[[T], R],
    jobs: Mapping[int, T],
    runtime: RuntimeConfig,
    on_result: Callable[[int, R], None],
    *,
    stage: str,
) -> None:
    """Run `work` on each job; hand each result over as soon as it is there, once, in the caller's thread.

    At most two jobs a worker are under way, so the caller's memory is bounded. Except for `inline` and `threads`, work
    and jobs are pickled; a worker process keeps what `work` caches in its module from job to job.

    Args:
        work: Called in a worker.
        jobs: Shard number -> what `work` is called with.
        runtime: Who runs it: runner, n_workers, runner_address, n_threads.
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
        # With a pool of processes all jobs under way die: they run alone then, so that none pays for another one's end
        # more than once.
        suspects = [number for number in left if deaths[number]]
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
        ).passing() from error


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
    error: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Prefect sends the flow to every worker; what the coordinator holds is not for them

    def start(self, n_workers: int) -> None:
        hide_prefects_console()
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
            task_runner=make_runner(self.runtime, n_workers, self.place),
            persist_result=False,
            validate_parameters=False,
        )
        # A server of its own, where none is configured, takes its time on a busy machine and calls nobody.
        defaults = {PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120, PREFECT_SERVER_ANALYTICS_ENABLED: False}
        with temporary_settings(set_defaults=defaults):
            start_server()
            try:
                with server_errors():
                    flow()
            finally:
                if self.error is not None:
                    raise self.error  # as it is, even where Prefect could not tell its server and raises that

    def run(self) -> None:
        """The flow's body."""
        try:
            with server_for_workers(), job_options(self.runtime):
                self._collect()
        except BaseException as error:
            self.error = error
            self._stop()
            raise

    def _collect(self) -> None:
        from prefect import Task
        from prefect.cache_policies import NO_CACHE

        options: dict[str, Any] = {"persist_result": False, "cache_result_in_memory": False, "cache_policy": NO_CACHE}
        task = Task(run_job, name="popalign-shard", **options)
        done: SimpleQueue[PrefectWrappedFuture[Any, Any]] = SimpleQueue()
        cause: Exception | None = None
        while self.todo or self.running:
            while self.todo and len(self.running) < self.window:
                self._submit(task, self.todo.popleft(), done)
            future = done.get()
            number = self.running.pop(future)
            try:
                self._hand_over(number, future)
            except death_signs(self.runtime) as error:
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
        """Do not wait for what is under way."""
        if self.runtime.runner == "processes":
            shutil.rmtree(self.place.folder, ignore_errors=True)
        for future in self.running:
            if self.runtime.runner == "ray":
                import ray

                ray.cancel(future.wrapped_future, force=True)
            elif self.runtime.runner == "dask":
                future.wrapped_future.cancel(force=True)
