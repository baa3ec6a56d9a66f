"""Running a plan, node by node."""

from collections.abc import Callable
from functools import partial

from flows.plan.costs import keep_seen
from flows.plan.planning import Plan, PlannedNode
from popalign_core.config import RuntimeConfig
from storage.store import ArtifactRef
from tasks.common.stage_object import Progress, no_progress, open_store
from tasks.common.stopwatch import Stopwatch

OnProgress = Callable[[str, int, int], None]
"""Called with (node, done, total); done == total at once for a node that is a hit."""

Call = Callable[[PlannedNode, RuntimeConfig], ArtifactRef]
"""How a node is run: directly, or as a Prefect task."""


def run_plan(planned: Plan, runtime: RuntimeConfig, call: Call) -> dict[str, ArtifactRef]:
    """Run a plan's nodes in order; what is published is not run again.

    Returns:
        Each node's artifact, those given included.
    """
    for node in planned:
        call(node, runtime)
    return planned.refs


def make(node: PlannedNode, runtime: RuntimeConfig, on_progress: Progress = no_progress) -> ArtifactRef:
    """The artifact of a node that has something to do, made where it is missing."""
    assert node.request is not None
    return node.step.stage.make(node.request, runtime, on_progress)


def tell_of(on_progress: OnProgress | None, node: PlannedNode) -> Progress:
    """A stage's callback that tells of a node."""
    return no_progress if on_progress is None else partial(on_progress, node.node)


def call_directly(on_progress: OnProgress | None = None) -> Call:
    """Run nodes without Prefect, and keep for later plans how fast each stage was."""
    seen = set[str]()

    def call(node: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        watch = Stopwatch(tell_of(on_progress, node))
        ref = make(node, runtime, watch)
        if not node.is_hit:
            keep_seen(node, runtime, watch, open_store(runtime), is_first=node.step.stage.name not in seen)
            seen.add(node.step.stage.name)
        return ref

    return call
