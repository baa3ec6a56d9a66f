"""Running a plan: node by node, or what is ready side by side."""

import contextvars
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial

from flows.plan.costs import keep_seen
from flows.plan.planning import Plan, PlannedNode
from popalign_core.config import RuntimeConfig
from storage.store import ArtifactRef
from tasks.common.stage_object import Progress, no_progress, open_store
from tasks.common.stopwatch import Stopwatch
from tasks.workers.aside import ended_by_sigterm, make_here_or_aside
from tasks.workers.shard_worker import count_gpus

OnProgress = Callable[[str, int, int], None]
"""Called with (node, done, total); done == total at once for a node that is a hit."""

Call = Callable[[PlannedNode, RuntimeConfig], ArtifactRef]
"""How a node is run: directly, or as a Prefect task."""


def run_plan(planned: Plan, runtime: RuntimeConfig, call: Call) -> dict[str, ArtifactRef]:
    """Run a plan's nodes; what is published is not run again.

    Returns:
        Each node's artifact, those given included.
    """
    run_nodes(planned, runtime, call)
    return planned.refs


def run_nodes(
    nodes: Iterable[PlannedNode], runtime: RuntimeConfig, call: Call, forgiven: tuple[type[Exception], ...] = ()
) -> dict[str, Exception]:
    """Run nodes, each after those whose artifacts it takes; as many side by side as `runtime.n_parallel` says.

    Side by side each node has a process of its own.

    Args:
        nodes: In an order in which they could run one by one.
        runtime: Store and machine.
        call: How a node is run.
        forgiven: Errors that cost a node and all that need it, and nothing else. Any other ends the run, once the
            nodes that are under way have ended.

    Returns:
        Of each node that came to nothing by a forgiven error, its own or another's, that error.
    """
    nodes = list(nodes)
    graph = _Graph(nodes, call, forgiven)
    # where at most one has work to do there is nothing to put side by side, and no GPU to look for
    n_parallel = parallel_nodes(runtime) if sum(not node.is_hit for node in nodes) > 1 else 1
    n_gpus = count_gpus(runtime) if n_parallel > 1 else 0
    runtimes = [
        runtime.model_copy(
            update={"n_parallel": n_parallel} | ({"device": f"cuda:{slot % n_gpus}"} if n_gpus > 1 else {})
        )
        for slot in range(n_parallel)
    ]
    for each in runtimes[1:]:
        # a thread of a flow run has its context; as daemons they do not hold up a process that is told to end
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(graph.work, each), daemon=True).start()
    with ended_by_sigterm() if n_parallel > 1 else nullcontext():
        graph.work(runtimes[0], is_main=True)
        return graph.outcome()


def parallel_nodes(runtime: RuntimeConfig) -> int:
    """How many nodes run side by side: as configured, else one a GPU that no runner's workers take, else one."""
    if runtime.n_parallel:
        return runtime.n_parallel
    return max(1, count_gpus(runtime)) if runtime.runner == "inline" else 1


class _Graph:
    """Which nodes wait, are under way and have ended; shared by the threads that run them."""

    def __init__(self, nodes: Iterable[PlannedNode], call: Call, forgiven: tuple[type[Exception], ...]) -> None:
        self._waiting = {node.node: node for node in nodes}
        self._under_way = set[str]()
        self._failed = dict[str, Exception]()
        self._error: BaseException | None = None
        self._call, self._forgiven = call, forgiven
        self._changed = threading.Condition()

    def work(self, runtime: RuntimeConfig, is_main: bool = False) -> None:
        """Run one ready node after the other, until none is left."""
        while (node := self._take()) is not None:
            try:
                self._call(node, runtime)
            except BaseException as error:
                self._end(node, error)
                if is_main and not isinstance(error, Exception):
                    raise  # an interrupt or SIGTERM: what else is under way ends with the process
            else:
                self._end(node, None)

    def outcome(self) -> dict[str, Exception]:
        """Once nothing is under way: what came to nothing, or the first error that is not forgiven."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way)
            if self._error is not None:
                raise self._error
            return self._failed

    def _take(self) -> PlannedNode | None:
        """The next node that can run; None when there is none left."""
        with self._changed:
            while True:
                self._skip_the_lost()
                if self._error is not None or not self._waiting:
                    return None
                chosen = next((node for node in self._waiting.values() if self._is_ready(node)), None)
                if chosen is not None:
                    self._under_way.add(chosen.node)
                    return self._waiting.pop(chosen.node)
                self._changed.wait()

    def _is_ready(self, node: PlannedNode) -> bool:
        return not any(name in self._waiting or name in self._under_way for name in node.step.inputs.values())

    def _skip_the_lost(self) -> None:
        """A node whose input came to nothing does so too."""
        for node in list(self._waiting.values()):
            lost = [self._failed[name] for name in node.step.inputs.values() if name in self._failed]
            if lost:
                self._failed[node.node] = lost[0]
                del self._waiting[node.node]

    def _end(self, node: PlannedNode, error: BaseException | None) -> None:
        with self._changed:
            self._under_way.discard(node.node)
            if isinstance(error, self._forgiven):
                self._failed[node.node] = error
            elif error is not None and self._error is None:
                self._error = error
            self._changed.notify_all()


def make(node: PlannedNode, runtime: RuntimeConfig, on_progress: Progress = no_progress) -> ArtifactRef:
    """The artifact of a node that has something to do, made where it is missing."""
    assert node.request is not None
    return make_here_or_aside(node.request, runtime, on_progress)


def tell_of(on_progress: OnProgress | None, node: PlannedNode) -> Progress:
    """A stage's callback that tells of a node."""
    return no_progress if on_progress is None else partial(on_progress, node.node)


def call_directly(on_progress: OnProgress | None = None) -> Call:
    """Run nodes without Prefect, and keep for later plans how fast each stage was."""
    seen = set[str]()

    def call(node: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        watch = Stopwatch(tell_of(on_progress, node))
        ref = make(node, runtime, watch)
        if not node.is_hit and runtime.n_parallel < 2:  # side by side each is slower than alone
            keep_seen(node, runtime, watch, open_store(runtime), is_first=node.step.stage.name not in seen)
            seen.add(node.step.stage.name)
        return ref

    return call
