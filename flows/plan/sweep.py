"""A sweep: its points as systems side by side, points whose training diverges are marked, never left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.plan.compare_systems import NODE, SystemsPlan, plan_systems
from flows.plan.execution import Call, run_nodes, run_plan
from flows.plan.planning import PlannedNode, plan_run
from flows.plan.steps import Step
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.sweeps import SweepPoint, default_system, expand_sweep
from popalign_core.errors import DivergedError, TrainingError
from storage.store import ArtifactRef
from tasks.common.reservations import reserve_run
from tasks.publishing.finished_run import check_training_name, claim_run, publish_sweep, read_diverged
from tasks.stages import sweep
from tasks.stages.comparison import system_of


@dataclass(frozen=True)
class SweepPlan:
    """All that a sweep takes.

    Attributes:
        points: What is varied, a system each.
        config: The run's, with the points among its systems, before it is scaled.
        n_seeds: Replicates of every point.
        scale: Share of the evaluation images.
        systems: The points side by side.
    """

    points: tuple[SweepPoint, ...]
    config: PipelineConfig
    n_seeds: int
    scale: float
    systems: SystemsPlan


def plan_sweep(
    parameters: Mapping[str, Sequence[Any]],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    *,
    systems: Sequence[str] = (),
    n_seeds: int = 1,
    scale: float = 1.0,
    grid: bool = False,
) -> SweepPlan:
    """What a sweep takes, and its points; runs nothing.

    Args:
        parameters: Field, such as `training.beta`, to its values.
        config: What decides the results.
        runtime: Store.
        systems: Names of those to vary; the base model, or where training is varied the aligned one, if none.
        n_seeds: Replicates of every point.
        scale: Share of the evaluation images.
        grid: Every combination of values; otherwise one parameter at a time.

    Raises:
        ConfigError: As `expand_sweep` and `plan_systems`.
    """
    # a sweep shows how measures change with a parameter, by one way of reading the images
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"readings": {}})})
    expanded, points = expand_sweep(config, systems or [default_system(parameters)], parameters, grid=grid)
    side_by_side = plan_systems([point.name for point in points], expanded, runtime, n_seeds=n_seeds, scale=scale)
    return SweepPlan(tuple(points), expanded, n_seeds, scale, side_by_side)


def run_sweep(
    planned: SweepPlan, runtime: RuntimeConfig, name: str, *, call: Call, replace: bool = False
) -> ArtifactRef:
    """Measure every point and fill `<root>/runs/<name>/`: tables, a page a parameter, run.json.

    A point whose training diverges stays in the table, with the reason; a sweep of the same name does not train it
    again.

    Args:
        planned: The sweep.
        runtime: Store, device, batch size.
        name: Of the run's folder.
        call: How a stage is called.
        replace: As of `runs.run_pipeline`.

    Returns:
        The artifact of the sweep.

    Raises:
        ConfigError: Before anything is run.
        TrainingError: When the training of every point diverges.
    """
    systems, points = planned.systems, planned.points
    check_training_name(runtime, name)
    kept = systems.planned.refs
    claim_run(kept, systems.config, runtime, name, replace=replace)
    failed, diverged = _run_apart(systems, runtime, call, read_diverged(runtime, name))
    left = [point.name for point in points if point.name not in failed]
    if not left:
        raise TrainingError(f"no point of the sweep can be trained; the first: {next(iter(failed.values()))}")
    if failed:
        systems = plan_systems(left, planned.config, runtime, n_seeds=planned.n_seeds, scale=planned.scale)
    step = Step("sweep", sweep.tabulate_sweep, {"comparison": NODE}, {"points": list(points), "failed": failed})
    tabulated = plan_run(systems.config, runtime, [step], systems.planned.refs)
    reserve_run([*kept.values(), *tabulated.refs.values()], runtime, name)
    run_plan(systems.planned, runtime, call)
    refs = run_plan(tabulated, runtime, call)
    publish_sweep(refs, systems.config, runtime, name, diverged)
    return refs["sweep"]


def _run_apart(
    systems: SystemsPlan, runtime: RuntimeConfig, call: Call, known: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Run all but the comparison.

    Args:
        systems: The points.
        runtime: Store, device, batch size.
        call: How a stage is called.
        known: Artifact whose training is known to diverge -> the reason; it is not run.

    Returns:
        The systems that came to nothing because a training diverged, and the artifacts of such trainings, both with
        the reason.
    """
    *nodes, last = systems.planned
    diverged = dict[str, str]()

    def call_or_remember(node: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        place = str(node.ref)
        try:
            if place in known:
                raise DivergedError(known[place])
            return call(node, runtime)
        except DivergedError as error:
            diverged[place] = str(error)
            raise

    reasons = run_nodes(nodes, runtime, call_or_remember, (DivergedError,))
    failed = {}
    for parameter, each in last.step.inputs.items():
        if each in reasons:
            failed[system_of(parameter)] = str(reasons[each])
    return failed, diverged
