"""A stage in a process of its own, so that several work side by side.

Not in a thread: while one stage loads a model, the libraries change how every module of the process is made.
"""

import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pickle import PicklingError
from types import FrameType
from typing import Any

import cloudpickle

from popalign_core.config import RuntimeConfig
from popalign_core.errors import PopAlignError, PreemptedError, ResourceError
from storage.store import ArtifactRef
from tasks.common.stage_object import Progress, Request, open_store, reference

_LONGEST_SAVING_S = 600
"""That a training takes to finish its step and save, after SIGTERM."""
_running = dict[int, Any]()
"""Process id -> process of every stage under way."""
_lock = threading.Lock()


class EndedError(BaseException):
    """SIGTERM came while stages worked side by side; no `Exception`, so that nothing takes it for a stage's own."""


def make_here_or_aside(request: Request[Any], runtime: RuntimeConfig, on_progress: Progress) -> ArtifactRef:
    """Answer a request: in a process of its own where stages work side by side, unless the answer is there already.

    Raises:
        PopAlignError: As `Stage.make` and `make_aside`.
    """
    if runtime.n_parallel > 1:
        store = open_store(runtime)
        if not store.is_published(reference(store, request)):
            return make_aside(request, runtime, on_progress)
    return request.stage.make(request, runtime, on_progress)


def make_aside(request: Request[Any], runtime: RuntimeConfig, on_progress: Progress) -> ArtifactRef:
    """Answer a request in a process of its own; as `Stage.make` in all else.

    Raises:
        PopAlignError: Whatever the stage raises there.
        ResourceError: When the process dies.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(cloudpickle.dumps((request, runtime)), theirs))
    with _lock:
        process.start()
        _running[process.pid or 0] = process
    theirs.close()
    with ours:
        try:
            ref = _follow(ours, request, on_progress)
        except Exception:
            _forget(process)
            raise
        _forget(process)  # after an interrupt it is under way, for `ended_by_sigterm` to end
    return ref


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """On SIGTERM, an interrupt or any error that is no stage's own, stages under way are told, and may save.

    Raises:
        PreemptedError: On SIGTERM, where nobody else catches it (Prefect does, in a flow run).
    """
    is_main = threading.current_thread() is threading.main_thread()
    earlier = signal.getsignal(signal.SIGTERM) if is_main else None
    is_ours = is_main and earlier == signal.SIG_DFL
    if is_ours:
        signal.signal(signal.SIGTERM, _raise_ended)
    try:
        yield
    except EndedError:
        _end_all()
        raise PreemptedError("SIGTERM: finished work is kept; the same command resumes") from None
    except BaseException as error:
        if not isinstance(error, Exception):
            _end_all()
        raise
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _forget(process: Any) -> None:
    process.join()
    with _lock:
        _running.pop(process.pid or 0, None)


def _raise_ended(signum: int, frame: FrameType | None) -> None:
    raise EndedError


def _end_all() -> None:
    with _lock:
        left = list(_running.values())
    for process in left:
        process.terminate()
    for process in left:
        process.join(_LONGEST_SAVING_S)


def _follow(connection: Connection, request: Request[Any], on_progress: Progress) -> ArtifactRef:
    while True:
        try:
            kind, content = connection.recv()
        except EOFError:
            raise ResourceError(
                f"the process of stage {request.stage.name} died; see whether memory ran out, and lower "
                "runtime.n_parallel or runtime.batch_size"
            ).passing() from None
        if kind == "progress":
            on_progress(*content)
        elif kind == "made":
            made: ArtifactRef = content
            return made
        else:
            raise content


def _work(payload: bytes, connection: Connection) -> None:
    """The process: a stage, its progress and its end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(KeyboardInterrupt, BrokenPipeError):
        try:
            request, runtime = cloudpickle.loads(payload)
            ref = request.stage.make(request, runtime, lambda *done: connection.send(("progress", done)))
        except Exception as error:  # noqa: BLE001 (the parent raises it)
            connection.send(("failed", _portable(error)))
        else:
            connection.send(("made", ref))
    connection.close()


def _portable(error: Exception) -> Exception:
    """The error as it is if it can travel; else one that says the same."""
    if isinstance(error, PopAlignError):
        return error
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except (PicklingError, TypeError, AttributeError, ValueError):
        return RuntimeError("".join(traceback.format_exception(error)))
    error.add_note("".join(traceback.format_exception(error)))  # the traceback itself does not travel
    return error


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
