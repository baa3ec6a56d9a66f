"""The stages as Prefect tasks, without Prefect's cache: the store is the cache."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any, cast
from uuid import UUID

from prefect import Task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from storage.store import ArtifactRef
from tasks import (
    attributes,
    benchmarks,
    calibration,
    comparison,
    evaluate,
    identities,
    pairs,
    pictures,
    preferences,
    prompts,
    report,
    sample,
    scores,
    sweep,
    train,
)
from tasks.stage import Progress

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


def _as_task(stage: Callable[..., ArtifactRef]) -> Task[..., ArtifactRef]:
    @wraps(stage)
    def run(*args: Any, **kwargs: Any) -> ArtifactRef:
        return stage(*args, **(kwargs | {"on_progress": publish_progress()}))

    return Task(run, name=stage.__name__.replace("_", "-"), cache_policy=NO_CACHE)


_STAGES: tuple[Callable[..., ArtifactRef], ...] = (
    prompts.write_prompts,
    identities.add_identities,
    benchmarks.add_benchmarks,
    sample.sample_images,
    attributes.read_attributes,
    calibration.calibrate_classifier,
    preferences.build_preferences,
    pairs.import_pairs,
    pictures.import_images,
    train.train_model,
    scores.score_images,
    evaluate.evaluate_system,
    report.write_report,
    comparison.compare_statistics,
    sweep.tabulate_sweep,
)

TASKS: dict[Callable[..., ArtifactRef], Task[..., ArtifactRef]] = {stage: _as_task(stage) for stage in _STAGES}
"""A stage's function -> its task."""
