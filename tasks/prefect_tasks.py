"""The stages as Prefect tasks, without Prefect's cache: the store is the cache."""

import re
from typing import Any, cast
from uuid import UUID

from prefect import Task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.utilities.annotations import quote

from popalign_core.config import RuntimeConfig
from storage.store import ArtifactRef
from tasks.common.stage_object import Progress, Request, Stage
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

N_UPDATES = 20
"""A progress artifact is renewed at most this often."""


def artifact_key(name: str) -> str:
    """A node's name as a Prefect artifact key: lower case, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def publish_progress() -> Progress:
    """A callback that keeps a progress artifact of the running task up to date; none is made on a hit."""
    node = str(task_run.name)
    artifact: list[UUID] = []
    shown = [-1]

    def on_progress(done: int, total: int) -> None:
        tick = done * N_UPDATES // max(total, 1)
        if tick == shown[0]:
            return
        shown[0] = tick
        percent = 100 * done / max(total, 1)
        if artifact:
            update_progress_artifact(artifact[0], percent)
        else:
            key = f"progress-{artifact_key(node)}"
            created = create_progress_artifact(percent, key=key, description=f"{node}: {total} to do")
            artifact.append(cast(UUID, created))  # awaitable only in async code

    return on_progress


def _as_task(stage: Stage[Any]) -> Task[..., ArtifactRef]:
    def run(request: Request[Any], runtime: RuntimeConfig) -> ArtifactRef:
        return stage.make(request, runtime, publish_progress())

    return Task(run, name=stage.name, cache_policy=NO_CACHE)


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
