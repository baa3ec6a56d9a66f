"""Prefect's task runners for a fan-out: how each is started, which errors mean a dead worker, and its server."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from contextvars import copy_context
from typing import Any

from popalign_core.config import RuntimeConfig
from popalign_core.errors import ConfigError
from tasks.workers.prefect_server import check_server, server_url
from tasks.workers.shard_worker import Place, watch_coordinator

MAX_DEATHS = 3
"""A job whose worker died so often is given up."""


def make_runner(runtime: RuntimeConfig, n_workers: int, place: Place) -> Any:
    """The task runner of one flow run.

    Raises:
        ConfigError: When it is not installed.
    """
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    address = runtime.runner_address
    try:
        if runtime.runner == "threads":
            return ThreadPoolTaskRunner(max_workers=n_workers)
        if runtime.runner == "processes":
            return ProcessPoolTaskRunner(max_workers=n_workers, initializer=watch_coordinator, initargs=(place.folder,))
        if runtime.runner == "ray":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            from prefect_ray.task_runners import RayTaskRunner

            # "local": without, Ray looks for a cluster that somebody else started on this machine
            return RayTaskRunner(
                address or "local",
                init_kwargs={"logging_level": "warning"} | ({} if address else _local_ray(n_workers)),
            )
        import dask
        from prefect_dask.task_runners import DaskTaskRunner

        dask.config.set({"distributed.worker.daemon": False})  # a daemon may not start the process of a classifier
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


def start_server() -> None:
    """Start Prefect's own server where none is configured, so that Ctrl-C spares it: the flow run has to tell it.

    Raises:
        ServiceError: When one is configured and does not answer.
    """
    from prefect.client.orchestration import get_client

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the server inherits it from this thread
        with suppress(RuntimeError):  # the flow run tries again and says why
            get_client(sync_client=True)

    if server_url():
        check_server()
        return
    thread = threading.Thread(target=copy_context().run, args=(start,), daemon=True)
    thread.start()
    thread.join()


@contextmanager
def server_for_workers() -> Iterator[None]:
    """Send the address of the flow run's server along: without one each worker would start a server of its own."""
    from prefect.context import FlowRunContext
    from prefect.settings import PREFECT_API_URL, temporary_settings

    context = FlowRunContext.get()
    assert context is not None
    with temporary_settings({PREFECT_API_URL: str(context.client.api_url)}):
        yield


def job_options(runtime: RuntimeConfig) -> Any:
    """Ray: retries and, on a cluster that others may use too, a GPU a job; on this machine workers claim theirs."""
    if runtime.runner != "ray":
        return nullcontext()
    from prefect_ray.context import remote_options

    on_gpu = runtime.runner_address is not None and _wants_cuda(runtime.device)
    return remote_options(max_retries=MAX_DEATHS - 1, num_gpus=int(on_gpu))


def _wants_cuda(device: str) -> bool:
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def death_signs(runtime: RuntimeConfig) -> tuple[type[Exception], ...]:
    """What says that a worker died, not that `work` failed."""
    if runtime.runner == "ray":
        from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError

        return (WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)
    if runtime.runner == "dask":
        from distributed import KilledWorker

        return (KilledWorker,)
    return (BrokenProcessPool,)
