"""A sweep: its points as systems side by side, those whose training diverges told apart and never left out."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.plan.running import Call, run_plan, run_steps
from flows.plan.steps import Step
from flows.plan.systems_run import NODE, LineUp, line_up
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.sweeps import SweepPoint, lay_out, usual_system
from popalign_core.errors import DivergedError, TrainingError
from storage.store import ArtifactRef
from tasks.publishing.finished_run import check_training_name, publish_sweep, read_diverged, reserve_run
from tasks.stages import sweep
from tasks.stages.comparison import system_of


def plan_sweep(
    parameters: Mapping[str, Sequence[Any]],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    *,
    systems: Sequence[str] = (),
    n_seeds: int = 1,
    scale: float = 1.0,
    grid: bool = False,
) -> tuple[LineUp, list[SweepPoint]]:
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
        ConfigError: As `sweeps.lay_out` and `comparison.line_up`.
    """
    laid, points = lay_out(config, systems or [usual_system(parameters)], parameters, grid=grid)
    return line_up([point.name for point in points], laid, runtime, n_seeds=n_seeds, scale=scale), points


def sweep_parameters(
    parameters: Mapping[str, Sequence[Any]],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    name: str,
    *,
    call: Call,
    systems: Sequence[str] = (),
    n_seeds: int = 1,
    scale: float = 1.0,
    grid: bool = False,
) -> ArtifactRef:
    """Measure every point and fill `<root>/runs/<name>/`: tables, a page a parameter, run.json.

    A point whose training diverges stays in the table, with the reason; a sweep of the same name does not train it
    again.

    Args:
        parameters: As `plan_sweep` takes them, as all that follows.
        config: What decides the results.
        runtime: Store, device, batch size.
        name: Of the run's folder.
        call: How a stage is called.
        systems: Names of those to vary.
        n_seeds: Replicates of every point.
        scale: Share of the evaluation images.
        grid: Every combination of values.

    Returns:
        The artifact of the sweep.

    Raises:
        ConfigError: Before anything is run.
        TrainingError: When the training of every point diverges.
    """
    laid, points = lay_out(config, systems or [usual_system(parameters)], parameters, grid=grid)
    lined = line_up([point.name for point in points], laid, runtime, n_seeds=n_seeds, scale=scale)
    check_training_name(runtime, name)
    reserve_run(lined.planned.refs.values(), runtime, name)
    failed, diverged = _run_apart(lined, runtime, call, read_diverged(runtime, name))
    left = [point.name for point in points if point.name not in failed]
    if not left:
        raise TrainingError(f"no point of the sweep can be trained; the first: {next(iter(failed.values()))}")
    if failed:
        lined = line_up(left, laid, runtime, n_seeds=n_seeds, scale=scale)
    refs = run_plan(lined.planned, runtime, call)
    told = {"points": points, "failed": failed}
    step = Step("sweep", sweep.tabulate_sweep, {"comparison": NODE}, told)
    refs = run_steps([step], lined.config, runtime, call, refs)
    publish_sweep(refs, lined.config, runtime, name, diverged)
    return refs["sweep"]


def _run_apart(
    lined: LineUp, runtime: RuntimeConfig, call: Call, known: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Run all but the comparison.

    Args:
        lined: The points.
        runtime: Store, device, batch size.
        call: How a stage is called.
        known: Artifact whose training is known to diverge -> the reason; it is not run.

    Returns:
        The systems that came to nothing because a training diverged, and the artifacts of such trainings, both with
        the reason.
    """
    reasons, diverged = dict[str, str](), dict[str, str]()
    *nodes, last = lined.planned
    for node in nodes:
        lost = [reasons[each] for each in node.step.inputs.values() if each in reasons]
        if lost:
            reasons[node.node] = lost[0]
            continue
        place = str(node.ref)
        try:
            if place in known:
                raise DivergedError(known[place])
            call(node, runtime)
        except DivergedError as error:
            reasons[node.node] = diverged[place] = str(error)
    failed = {}
    for parameter, each in last.step.inputs.items():
        if each in reasons:
            failed[system_of(parameter)] = reasons[each]
    return failed, diverged
