"""Stage `comparison`: systems side by side, from statistics that other stages have read off their images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.prompts import DELIVERY
from tasks.sample import STAGE as SAMPLE
from tasks.set_quality import quality_rows
from tasks.stage import Progress, Request, no_progress, produce
from tasks.tables import NO_SEED, read_images
from tasks.train import STAGE as TRAIN

if TYPE_CHECKING:
    from popalign_core.evaluation.metrics import SystemFrames

STAGE = "comparison"
VERSION = "1"

Inputs = Mapping[str, ArtifactRef]


def parameter(part: str, system: str, replicate: int) -> str:
    """Under which name the stage takes a part (sample, attributes, scores) of a system's statistics."""
    return f"{part}:{system}@{replicate}"


def system_of(name: str) -> str:
    """Whose statistics a parameter takes."""
    return name.partition(":")[2].rpartition("@")[0]


def shown_configuration(config: PipelineConfig) -> dict[str, Any]:
    """The whole configuration as pages show it, without the model's path and how prompts were delivered."""
    return config.model_dump(mode="json", exclude={"model": {"name"}, "prompts": DELIVERY})


def request(
    config: PipelineConfig,
    *,
    prompts: ArtifactRef,
    calibration: ArtifactRef | None = None,
    systems: Sequence[str],
    n_seeds: int,
    scale: float,
    **statistics: ArtifactRef,
) -> Request:
    """What the key depends on: the whole configuration, which the page shows, without the model's path."""
    inputs = {"prompts": prompts, "calibration": calibration, **statistics}
    return Request(
        STAGE,
        VERSION,
        {"systems": list(systems), "n_seeds": n_seeds, "scale": scale, "configuration": shown_configuration(config)},
        {name: ref.key for name, ref in inputs.items() if ref is not None},
    )


def compare_statistics(
    prompts: ArtifactRef,
    *,
    calibration: ArtifactRef | None = None,
    systems: Sequence[str],
    n_seeds: int,
    scale: float,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
    **statistics: ArtifactRef,
) -> ArtifactRef:
    """Publish tables `metrics`, `comparison` (each system minus the first, paired), `per_prompt` and `costs`.

    Args:
        prompts: Artifact with all prompts.
        calibration: Of the classifier; without it no share is corrected.
        systems: Names, the reference first.
        n_seeds: Replicates.
        scale: Share of the configured evaluation images that was drawn, for the page.
        config: Of the pipeline.
        runtime: Which store.
        on_progress: Told how many systems are measured.
        statistics: `sample`, `attributes` and `scores` of each system and replicate, named by `parameter`; imported
            images have one replicate.

    Raises:
        InputError: When the tables do not fit together.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        from popalign_core.evaluation.metrics import compare_systems, compute_metrics, per_prompt_table

        table = store.read_table(prompts, "prompts")
        frames = [read_system(store, name, n_seeds, statistics) for name in systems]
        metrics = []
        for number, f in enumerate(frames, 1):
            metrics.append(
                compute_metrics(f.name, table, f.images, f.attributes, f.scores, config.axes, config.evaluation)
            )
            on_progress(number, len(frames))
        quality = quality_rows(store, table, scored_of(systems, n_seeds, statistics), config.evaluation)
        build.write_table("metrics", pd.concat([*metrics, quality] if len(quality) else metrics, ignore_index=True))
        paired = [f for f in frames[1:] if is_paired(frames[0], f)]
        comparison = [compare_systems(table, frames[0], f, config.axes, config.evaluation) for f in paired]
        build.write_table("comparison", pd.concat([metrics[0].head(0), *comparison], ignore_index=True))
        by_prompt = [per_prompt_table(f.name, table, f.images, f.attributes, config.axes) for f in frames]
        build.write_table("per_prompt", pd.concat(by_prompt, ignore_index=True))
        costs = [count_costs(store, name, refs_of("sample", name, n_seeds, statistics)) for name in systems]
        build.write_table("costs", pd.concat(costs, ignore_index=True))

    asked = request(
        config, prompts=prompts, calibration=calibration, systems=systems, n_seeds=n_seeds, scale=scale, **statistics
    )
    return produce(asked, runtime, fill)


def is_paired(one: "SystemFrames", other: "SystemFrames") -> bool:
    """Whether the two systems' images have seeds in common; those made elsewhere have none that we know."""
    return not any((frames.images["seed"] == NO_SEED).any() for frames in (one, other))


def refs_of(part: str, system: str, n_seeds: int, statistics: Inputs) -> list[ArtifactRef]:
    """A part of a system's statistics, one artifact a replicate; imported images have one."""
    names = (parameter(part, system, replicate) for replicate in range(n_seeds))
    return [statistics[name] for name in names if name in statistics]


def scored_of(
    systems: Sequence[str], n_seeds: int, statistics: Inputs
) -> dict[str, list[tuple[ArtifactRef, ArtifactRef]]]:
    """Each system's images and their scores, a replicate each."""
    found = {}
    for system in systems:
        names = [(parameter("sample", system, r), parameter("scores", system, r)) for r in range(n_seeds)]
        found[system] = [(statistics[one], statistics[other]) for one, other in names if one in statistics]
    return found


def count_costs(store: Store, system: str, samples: Sequence[ArtifactRef]) -> pd.DataFrame:
    """Table `costs`: what a system's images and its training took, of all replicates, as their manifests say."""
    totals = {("images drawn", "images"): 0, ("denoiser steps", "steps"): 0, ("training", "steps"): 0}
    for sample in samples:
        manifest = store.manifest(sample)
        if sample.stage != SAMPLE:
            continue  # drawn elsewhere, at what cost we cannot know
        n_images = manifest.rows["images"]
        totals["images drawn", "images"] += n_images
        totals["denoiser steps", "steps"] += n_images * manifest.payload["config"]["sampling"]["n_steps"]
        model = manifest.payload["inputs"].get("model")
        while model is not None:
            training = store.manifest(ArtifactRef(TRAIN, model)).payload
            totals["training", "steps"] += training["config"]["training"]["n_steps"]
            model = training["inputs"].get("start")
    rows = [(system, what, float(value), unit) for (what, unit), value in totals.items() if value]
    return pd.DataFrame(rows, columns=["system", "what", "value", "unit"]).astype({"value": float})


def read_system(store: Store, system: str, n_seeds: int, statistics: Inputs) -> "SystemFrames":
    """The statistics of a system, its replicates one below the other."""
    from popalign_core.evaluation.metrics import SystemFrames

    samples = refs_of("sample", system, n_seeds, statistics)
    images = [read_images(store, ref).assign(replicate=replicate) for replicate, ref in enumerate(samples)]
    attributes, scores = (
        [store.read_table(ref, part) for ref in refs_of(part, system, n_seeds, statistics)]
        for part in ("attributes", "scores")
    )
    return SystemFrames(system, *(pd.concat(parts, ignore_index=True) for parts in (images, attributes, scores)))
