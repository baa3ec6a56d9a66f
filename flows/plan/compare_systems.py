"""Comparing systems: the steps that measure them on the same prompts and seeds, and the run of those steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flows.plan.execution import Call, run_plan
from flows.plan.planning import Plan, plan_run
from flows.plan.steps import PROMPT_STEPS, Step, statistics_steps, training_steps
from popalign_core.config import PipelineConfig, RuntimeConfig, SystemConfig
from popalign_core.config.systems import (
    BASE,
    configure_replicate,
    configure_system,
    configure_training,
    find_system,
    starts,
)
from popalign_core.errors import ConfigError
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.publishing.finished_run import check_training_name, claim_run, publish_comparison
from tasks.stages import comparison, train
from tasks.stages.imported import find_imported

NODE = comparison.compare_statistics.name
_PARTS = {"sample": "sample-eval", "attributes": "attributes-eval", "scores": "scores"}
"""Part of a system's statistics -> the node that makes it."""


@dataclass(frozen=True)
class SystemsPlan:
    """All that comparing some systems takes.

    Attributes:
        systems: Their names, the reference first.
        config: The run's, at the scale asked for.
        planned: What is to be done; nodes of equal outcome are one. The last is the comparison. Imported images are
            given.
    """

    systems: tuple[str, ...]
    config: PipelineConfig
    planned: Plan


def plan_systems(
    names: Sequence[str], config: PipelineConfig, runtime: RuntimeConfig, *, n_seeds: int = 1, scale: float = 1.0
) -> SystemsPlan:
    """What it takes to compare systems; runs nothing.

    Args:
        names: Of systems, each once; the first is what the others are compared with. A single one is compared with
            the base model.
        config: What decides the results, the configuration's own systems among it.
        runtime: Store.
        n_seeds: Replicates: the number of evaluation seeds, and of training seeds for trained systems.
        scale: Share of the evaluation images, for a quick look.

    Raises:
        ConfigError: For a name that is given twice or that no system has, or a scale or a number that is out of range.
        InputError: When imported images are not there, or are for other prompts.
    """
    names = tuple(names) if len(names) > 1 else (BASE, *names)
    if len(set(names)) != len(names):
        alone = " (a single one is compared with base)" if set(names) == {BASE} else ""
        raise ConfigError(f"systems {', '.join(names)}: one is given twice{alone}; name each once")
    if n_seeds < 1:
        raise ConfigError(f"{n_seeds} seeds are too few; give 1 or more")
    if not 0 < scale <= 1:
        raise ConfigError(f"scale is {scale:g}; give a share of the evaluation images, above 0 and up to 1")
    config = config.scaled(scale)
    systems = {name: find_system(config, name) for name in names}
    given = _imported(systems, config, runtime)
    steps, inputs = [*PROMPT_STEPS, *training_steps(config)], {"prompts": "benchmarks"}
    for replicate in range(n_seeds):
        for name, system in systems.items():
            if system.images is None or replicate == 0:
                steps += (step for step in system_steps(config, name, replicate) if step.node not in given)
                inputs |= _statistics(name, replicate, config)
    if any(system.trains for system in systems.values()):
        inputs["calibration"] = "calibration"  # the images it takes are sampled for the training
    options = {"systems": names, "n_seeds": n_seeds, "scale": scale}
    steps.append(Step(NODE, comparison.compare_statistics, inputs, options))
    return SystemsPlan(names, config, plan_run(config, runtime, steps, given, target=NODE))


def system_steps(config: PipelineConfig, name: str, replicate: int = 0) -> tuple[Step, ...]:
    """The steps that sample and measure a system's evaluation images, its training and those before it included.

    Raises:
        ConfigError: When there is no such system, or what it changes does not fit.
    """
    config = configure_replicate(config, replicate)
    training = tuple(_training_steps(config, name, replicate))
    model = training[-1].node if training else None
    measured = configure_system(config, name)
    label = _label(name, replicate)
    measuring = [replace(step, config=measured) for step in statistics_steps(label, model)]
    measuring += (_other_reading(label, measured, name) for name in config.evaluation.other_readings)
    return (*training, *measuring)


def run_comparison(
    names: Sequence[str],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    name: str,
    *,
    call: Call,
    n_seeds: int = 1,
    scale: float = 1.0,
    replace: bool = False,
) -> ArtifactRef:
    """Measure systems on the same prompts and seeds and fill `<root>/runs/<name>/`: tables, page, run.json.

    Args:
        names: Of systems, as `plan_systems` takes them; trainings that are not there are run.
        config: What decides the results.
        runtime: Store, device, batch size.
        name: Of the run's folder.
        call: How a stage is called.
        n_seeds: Replicates.
        scale: Share of the evaluation images.
        replace: As of `runs.run_pipeline`.

    Returns:
        The artifact of the comparison.

    Raises:
        ConfigError: As `plan_systems` and `runs.run_pipeline`, before anything is run.
    """
    side_by_side = plan_systems(names, config, runtime, n_seeds=n_seeds, scale=scale)
    check_training_name(runtime, name)
    config, planned = side_by_side.config, side_by_side.planned
    claim_run(planned.refs, config, runtime, name, replace=replace, is_comparison=True)
    refs = run_plan(planned, runtime, call)
    publish_comparison(refs, config, runtime, name)
    return refs[NODE]


def _training_steps(config: PipelineConfig, name: str, replicate: int) -> Iterator[Step]:
    """Preference data and training of the systems that this one starts from, and last its own; none if none trains."""
    start: str | None = None
    for each in reversed([name, *starts(config, name)]):
        if not find_system(config, each).trains:
            continue
        suffix, changed = f":{_label(each, replicate)}", configure_training(config, each)
        own = [step for step in training_steps(changed) if step.node != "calibration"]
        nodes = {step.node for step in own}
        for step in own:
            inputs = {part: node + suffix if node in nodes else node for part, node in step.inputs.items()}
            if start is not None and step.stage is train.train_model:
                inputs["start"] = start
            if start is not None and step.options.get("purpose") == "round":
                inputs.setdefault("model", start)
            yield replace(step, node=step.node + suffix, inputs=inputs, config=changed)
        start = f"train{suffix}"


def _other_reading(label: str, config: PipelineConfig, name: str) -> Step:
    """The step that reads a system's images in another way, by another classifier or detector."""
    _, first, _ = statistics_steps(label)
    changed = config.model_copy(update={"attributes": config.reading(name)})
    return replace(first, node=f"attributes-{comparison.reading_part(name)}:{label}", config=changed)


def _statistics(name: str, replicate: int, config: PipelineConfig) -> dict[str, str]:
    """Parameter of the comparison -> node."""
    label = _label(name, replicate)
    readings = map(comparison.reading_part, config.evaluation.other_readings)
    parts = _PARTS | {part: f"attributes-{part}" for part in readings}
    return {comparison.parameter(part, name, replicate): f"{node}:{label}" for part, node in parts.items()}


def _imported(
    systems: Mapping[str, SystemConfig], config: PipelineConfig, runtime: RuntimeConfig
) -> dict[str, ArtifactRef]:
    """Nodes of evaluation images that were made elsewhere -> where they are."""
    keys = {name: system.images for name, system in systems.items() if system.images is not None}
    if not keys:
        return {}
    store, prompts = open_store(runtime), plan_run(config, runtime, PROMPT_STEPS).refs["benchmarks"]
    return {f"{_PARTS['sample']}:{name}": find_imported(store, key, prompts, config) for name, key in keys.items()}


def _label(name: str, replicate: int) -> str:
    return f"{name}@{replicate}" if replicate else name
