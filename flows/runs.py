"""What the flows do, as plain functions: with Prefect tasks or, as `popalign run`, without Prefect at all."""

from collections.abc import Sequence
from pathlib import Path

from flows.graph import (
    PAIRS_STEP,
    PIPELINE,
    PROMPT_STEPS,
    Call,
    Step,
    needed_for,
    plan,
    references,
    run_steps,
)
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import StoreError
from storage.store import ArtifactRef
from tasks import pictures
from tasks.pairs import find_pairs
from tasks.publish import check_training_name, publish_run, publish_training, reserve_run
from tasks.sets import find_sets
from tasks.stage import open_store


def run_pipeline(config: PipelineConfig, runtime: RuntimeConfig, name: str, *, call: Call) -> dict[str, ArtifactRef]:
    """Run all stages and fill `<root>/runs/<name>/`: metrics, report, aligned model, run.json.

    Args:
        config: What decides the results.
        runtime: Store, device, batch size.
        name: Of the run's folder.
        call: How a stage is called: `graph.call_directly(...)` or `tasks.registered.call_as_task`.

    Returns:
        Each node's artifact.
    """
    reserve_run((node.ref for node in plan(config, runtime)), runtime, name)
    refs = run_steps(PIPELINE, config, runtime, call)
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
    steps = needed_for(node)
    ref = references(config, runtime, steps)[-1][1]
    if force:
        _retire(ref, runtime)
    return run_steps(steps, config, runtime, call)[node]


def train_on_pairs(key: str, config: PipelineConfig, runtime: RuntimeConfig, name: str, *, call: Call) -> str:
    """Train on imported pairs or sets and fill `<root>/runs/<name>/`: the model, its adapter if there is one, run.json.

    Args:
        key: Of the pairs or sets, as `popalign import` printed it.
        config: What decides the results; its base model and its size are those of the import.
        runtime: Store, device, batch size.
        name: Of the run's folder.
        call: How a stage is called.

    Returns:
        Where the model is.

    Raises:
        InputError: When there are no such pairs or sets, or another model or size encoded them.
        ConfigError: When the folder holds a whole run.
    """
    find = find_sets if "sets-v" in key else find_pairs
    pairs = find(open_store(runtime), key, config)
    check_training_name(runtime, name)
    given = {"pairs": pairs}
    reserve_run([pairs, *(ref for _, ref in references(config, runtime, [PAIRS_STEP], given))], runtime, name)
    return publish_training(run_steps([PAIRS_STEP], config, runtime, call, given), config, runtime, name)


def import_pictures(
    sources: Sequence[str | Path], config: PipelineConfig, runtime: RuntimeConfig, *, call: Call
) -> dict[str, ArtifactRef]:
    """Bring pictures of the evaluation prompts that were made elsewhere into the store, and before them the prompts.

    Args:
        sources: Folders and Parquet files as `storage.pictures` describes them.
        config: What decides the prompts and the pictures' size.
        runtime: Store, shard size.
        call: How a stage is called.

    Returns:
        The artifacts of the prompts and of `imported`.

    Raises:
        InputError: When a source cannot be read, or no picture can be used.
    """
    # a step to run, not to plan: its request asks for sources that are opened
    step = Step(
        pictures.STAGE, pictures.import_images, pictures.request, {"prompts": "benchmarks"}, {"sources": sources}
    )
    return run_steps([*PROMPT_STEPS, step], config, runtime, call)


def _retire(ref: ArtifactRef, runtime: RuntimeConfig) -> None:
    """Make the next key of a published artifact a new one; a damaged artifact is as good a reason as a whole one."""
    store = open_store(runtime)
    try:
        is_there = store.is_published(ref)
    except StoreError:
        is_there = True
    if is_there:
        store.bump(ref.stage, ref.key)
