"""What the flows do, as plain functions: with Prefect tasks or, as `popalign run`, without Prefect at all."""

from collections.abc import Sequence
from pathlib import Path

from flows.plan.execution import Call, run_plan
from flows.plan.planning import Plan, plan_run
from flows.plan.steps import PAIRS_STEP, PROMPT_STEPS, Step, needed_for, pipeline_steps
from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef
from tasks.common.reservations import reserve_made
from tasks.common.stage_object import open_store
from tasks.publishing.finished_run import check_training_name, claim_run, publish_run, publish_training
from tasks.stages import imported
from tasks.stages.pairs import find_pairs
from tasks.stages.sets import find_sets


def run_pipeline(
    config: PipelineConfig,
    runtime: RuntimeConfig,
    name: str,
    *,
    call: Call,
    planned: Plan | None = None,
    replace: bool = False,
) -> dict[str, ArtifactRef]:
    """Run all stages and fill `<root>/runs/<name>/`: metrics, report, aligned model, run.json.

    Args:
        config: What decides the results.
        runtime: Store, device, batch size.
        name: Of the run's folder.
        call: How a node is run: `execution.call_directly(...)` or `prefect_artifacts.call_as_task`.
        planned: The plan of this run; made here when not given.
        replace: Whether a finished run of another configuration may give way.

    Returns:
        Each node's artifact.

    Raises:
        ConfigError: When it would replace one and must not; before anything is run.
    """
    planned = planned or plan_run(config, runtime)
    claim_run(planned.refs, config, runtime, name, replace=replace)
    refs = run_plan(planned, runtime, call)
    publish_run(refs, config, runtime, name)
    return refs


def run_stage(
    node: str, config: PipelineConfig, runtime: RuntimeConfig, *, call: Call, force: bool = False
) -> ArtifactRef:
    """Run one node, and before it whatever it needs and is not published.

    Args:
        node: Such as `train` or `evaluate:aligned`.
        config: What decides the results.
        runtime: Store, device, batch size.
        call: How a stage is called.
        force: Make a new version of a node that is published already, whole or damaged; the old one is kept.

    Returns:
        The node's artifact.

    Raises:
        ConfigError: For an unknown node.
    """
    steps = needed_for(node, pipeline_steps(config))
    planned = plan_run(config, runtime, steps, forced=node if force else None)
    if not all(each.is_hit for each in planned):
        reserve_made(planned.refs.values(), runtime, f"stage-{node}")
    return run_plan(planned, runtime, call)[node]


def train_on_pairs(
    key: str, config: PipelineConfig, runtime: RuntimeConfig, name: str, *, call: Call, replace: bool = False
) -> str:
    """Train on imported pairs or sets and fill `<root>/runs/<name>/`: the model, its adapter if there is one, run.json.

    Args:
        key: Of the pairs or sets, as `popalign import` printed it.
        config: What decides the results; its base model and its size are those of the import.
        runtime: Store, device, batch size.
        name: Of the run's folder.
        call: How a stage is called.
        replace: As of `run_pipeline`.

    Returns:
        Where the model is.

    Raises:
        InputError: When there are no such pairs or sets, or another model or size encoded them.
        ConfigError: When the folder holds a whole run, or as `run_pipeline`.
    """
    find = find_sets if "sets-v" in key else find_pairs
    pairs = find(open_store(runtime), key, config)
    check_training_name(runtime, name)
    planned = plan_run(config, runtime, [PAIRS_STEP], {"pairs": pairs})
    claim_run(planned.refs, config, runtime, name, replace=replace)
    return publish_training(run_plan(planned, runtime, call), config, runtime, name)


def import_external_images(
    sources: Sequence[str | Path], config: PipelineConfig, runtime: RuntimeConfig, *, call: Call
) -> dict[str, ArtifactRef]:
    """Bring images of the evaluation prompts that were made elsewhere into the store, and before them the prompts.

    Args:
        sources: Folders and Parquet files as `storage.formats.external_images` describes them.
        config: What decides the prompts and the images' size.
        runtime: Store, shard size.
        call: How a stage is called.

    Returns:
        The artifacts of the prompts and of `imported`.

    Raises:
        InputError: When a source cannot be read, or no image can be used.
    """
    step = Step("imported", imported.import_images, {"prompts": "benchmarks"}, {"sources": sources})
    planned = plan_run(config, runtime, [*PROMPT_STEPS, step])
    reserve_made(planned.refs.values(), runtime, "import-images")
    return run_plan(planned, runtime, call)
