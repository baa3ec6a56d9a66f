"""The stages as Prefect tasks, without Prefect's cache: the store is the cache."""

import re
from typing import Any, cast
from uuid import UUID

from prefect import Task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote

from popalign_core.config import RuntimeConfig
from popalign_core.errors import PopAlignError
from storage.store import ArtifactRef, Store
from tasks.common.stage_object import Progress, Request, Stage, open_store, reference
from tasks.stages import (
    attributes,
    benchmarks,
    calibration,
    comparison,
    evaluate,
    identities,
    imported,
    pairs,
    preferences,
    prompts,
    report,
    sample,
    scores,
    sets,
    sweep,
    train,
)
from tasks.workers.aside import make_here_or_aside

N_UPDATES = 20
"""A progress artifact is renewed at most this often."""
TAG = "popalign"
"""Of every flow and task run: the automation looks for it."""
N_RETRIES, FIRST_DELAY_S = 4, 15.0
"""Of a task whose error may pass: after 15, 30, 60 and 120 s, each up to half as long again."""


def artifact_key(name: str) -> str:
    """A node's name as a Prefect artifact key: lower case, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def publish_progress() -> Progress:
    """A callback that keeps a progress artifact of the running task up to date, and its log; none is made on a hit."""
    node, logger = str(task_run.name), get_run_logger()
    artifact: list[UUID] = []
    shown = [-1]

    def on_progress(done: int, total: int) -> None:
        tick = done * N_UPDATES // max(total, 1)
        if tick == shown[0]:
            return
        shown[0] = tick
        logger.info("%s: %d of %d", node, done, total)
        percent = 100 * done / max(total, 1)
        if artifact:
            update_progress_artifact(artifact[0], percent)
        else:
            key = f"progress-{artifact_key(node)}"
            created = create_progress_artifact(percent, key=key, description=f"{node}: {total} to do")
            artifact.append(cast(UUID, created))  # awaitable only in async code

    return on_progress


def may_succeed_later(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a task that failed is tried again: not where configuration, data or weights are at fault."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, PopAlignError) and failure.may_pass


def _as_task(stage: Stage[Any]) -> Task[..., ArtifactRef]:
    def run(request: Request[Any], runtime: RuntimeConfig) -> ArtifactRef:
        store = open_store(runtime)
        is_hit = store.is_published(reference(store, request))
        ref = make_here_or_aside(request, runtime, publish_progress())
        _log_outcome(store, ref, is_hit=is_hit)
        return ref

    return Task(
        run,
        name=stage.name,
        tags=[TAG, stage.name],
        cache_policy=NO_CACHE,
        retries=N_RETRIES,
        retry_delay_seconds=exponential_backoff(FIRST_DELAY_S),
        retry_jitter_factor=0.5,
        retry_condition_fn=may_succeed_later,
    )


def _log_outcome(store: Store, ref: ArtifactRef, *, is_hit: bool) -> None:
    """Which artifact a task ended with, and what was left out on the way."""
    logger = get_run_logger()
    logger.info("%s %s", ref, "was in the store" if is_hit else "is in the store now")
    if "drops" in store.manifest(ref).rows:
        rows = store.read_table(ref, "drops").to_dict("records")
        dropped = [f"{row['n']} {row['reason']}" for row in rows if row["n"]]
        logger.info("dropped: %s", ", ".join(dropped) or "none")


_STAGES: tuple[Stage[Any], ...] = (
    prompts.write_prompts,
    identities.add_identities,
    benchmarks.add_benchmarks,
    sample.sample_images,
    attributes.read_attributes,
    calibration.calibrate_classifier,
    preferences.build_preferences,
    pairs.import_pairs,
    sets.import_sets,
    imported.import_images,
    train.train_model,
    scores.score_images,
    evaluate.evaluate_system,
    report.write_report,
    comparison.compare_statistics,
    sweep.tabulate_sweep,
)

TASKS: dict[str, Task[..., ArtifactRef]] = {stage.name: _as_task(stage) for stage in _STAGES}
"""Name of a stage -> its task, of a request and the runtime."""


def make_as_task(request: Request[Any], runtime: RuntimeConfig, name: str) -> ArtifactRef:
    """Answer a request in a Prefect task run of a name."""
    task = TASKS[request.stage.name].with_options(task_run_name=name)
    # quoted: Prefect would walk through every table and path of the request in search of futures
    ref: ArtifactRef = task(quote(request), runtime)
    return ref
