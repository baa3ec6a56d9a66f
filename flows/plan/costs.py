"""What is left of a plan in seconds, bytes and paid calls, by what this machine was seen to do. Imports no torch."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from flows.plan.planning import PlannedNode, is_followed
from flows.plan.preflight import PIXEL_BYTES, size_of_training
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import PopAlignError
from storage.store import Store
from tasks.common.kept_speeds import Rate, find_rate, keep_rate, stage_speed
from tasks.common.stopwatch import Stopwatch
from tasks.stages import sample, train


@dataclass(frozen=True)
class Cost:
    """What a node takes.

    Attributes:
        seconds: None where this machine was not seen at such work.
        n_bytes: In the store, when it is done.
        n_calls: Of a paid service.
    """

    seconds: float | None = None
    n_bytes: float = 0.0
    n_calls: int = 0


def estimate_costs(nodes: Iterable[PlannedNode], runtime: RuntimeConfig) -> dict[str, Cost]:
    """The cost of each node that is not in the store yet.

    Args:
        nodes: Of a plan, in the order of execution.
        runtime: Of this machine.
    """
    costs, seen = dict[str, Cost](), set[str]()
    for node in nodes:
        if node.is_hit or node.config is None:
            continue
        stage = node.step.stage.name
        rate = None
        with suppress(PopAlignError):  # a model that is not there is told by the plan
            rate = find_rate(stage_speed(stage, node.config, runtime))
        cost = _without_rate(node, runtime) if rate is None else _with_rate(node, rate, is_first=stage not in seen)
        n_bytes = cost.n_bytes + _published_bytes(node, runtime)
        costs[node.node] = replace(cost, n_bytes=n_bytes, n_calls=_paid_calls(node))
        seen.add(stage)
    return costs


def keep_seen(node: PlannedNode, runtime: RuntimeConfig, watch: Stopwatch, store: Store, *, is_first: bool) -> None:
    """Keep how fast a node was that has just been run.

    Args:
        node: With its configuration.
        runtime: That it ran with.
        watch: That saw it.
        store: Where its artifact is.
        is_first: Whether it is the first of its stage in this process.
    """
    if node.config is None or watch.is_idle:
        return
    with suppress(PopAlignError):  # what is only good to know must not end a run
        _keep(node, node.config, runtime, watch, store, is_first=is_first)


def _keep(
    node: PlannedNode,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    watch: Stopwatch,
    store: Store,
    *,
    is_first: bool,
) -> None:
    speed = stage_speed(node.step.stage.name, config, runtime)
    before, seconds = find_rate(speed) or Rate(), watch.seconds
    n_units = watch.count() if node.n_images or node.n_steps else 0
    unit_s = (watch.unit_s() or before.unit_s) if n_units else 0.0
    if n_units and not unit_s:
        unit_s = seconds / n_units  # all in one piece: better than nothing, and corrected by the next run
    around = max(0.0, seconds - unit_s * n_units)
    size = float(sum(file.bytes for file in store.manifest(node.ref).files.values()))
    rate = replace(
        before,
        **({"first_s": around} if is_first else {"again_s": around}),
        unit_s=unit_s,
        unit_bytes=size / watch.total if node.n_images else 0.0,
        fixed_bytes=0.0 if node.n_images else size,
    )
    keep_rate(speed, rate)


def _with_rate(node: PlannedNode, rate: Rate, *, is_first: bool) -> Cost:
    n_units = node.n_images or node.n_steps
    known = (rate.first_s, rate.again_s) if is_first else (rate.again_s, rate.first_s)
    around = next((each for each in known if each is not None), 0.0)
    return Cost(around + n_units * rate.unit_s, rate.fixed_bytes + node.n_images * rate.unit_bytes)


def _without_rate(node: PlannedNode, runtime: RuntimeConfig) -> Cost:
    """Images and what is trained take a known room whatever their speed."""
    if node.config is not None and node.step.stage is train.train_model:
        return Cost(n_bytes=size_of_training(node.config, runtime).kept(is_followed=is_followed(node)))
    if node.config is None or node.step.stage is not sample.sample_images:
        return Cost()
    return Cost(n_bytes=node.n_images * node.config.sampling.width * node.config.sampling.height * PIXEL_BYTES)


def _published_bytes(node: PlannedNode, runtime: RuntimeConfig) -> float:
    """Of the model in a run's folder, what is not the artifact's own: a denoiser that an adapter is merged into.

    It is the run's own training that is published, not those of systems that it is compared with.
    """
    is_published = node.config is not None and node.node == train.train_model.name
    return size_of_training(node.config, runtime).merged if is_published and node.config is not None else 0.0


def _paid_calls(node: PlannedNode) -> int:
    from popalign_core.prompts.synthesis import expected_calls

    return expected_calls(node.config.prompts) if node.config is not None and node.node == "prompts" else 0
