"""Stage `comparison`: systems side by side, from statistics that other stages have read off their images."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.grid import read_grids
from tasks.prompts import DELIVERY
from tasks.sample import STAGE as SAMPLE
from tasks.set_quality import quality_rows
from tasks.stage import Progress, Request, no_progress, produce
from tasks.tables import read_images
from tasks.train import STAGE as TRAIN

if TYPE_CHECKING:
    from popalign_core.evaluation.metrics import SystemFrames
    from popalign_core.report.comparison_inputs import ComparisonInputs

STAGE = "comparison"
VERSION = "5"

PAGE, CARD = "comparison.html", "comparison.md"
TABLES = ("metrics", "comparison", "wins", "per_prompt", "costs")
N_PROMPTS = {"neutral": 6, "specific": 3, "generic": 3}
"""Prompts whose pictures are shown, by kind."""

Inputs = Mapping[str, ArtifactRef]


def parameter(part: str, system: str, replicate: int) -> str:
    """Under which name the stage takes a part (sample, attributes, scores, second) of a system's statistics."""
    return f"{part}:{system}@{replicate}"


def system_of(name: str) -> str:
    """Whose statistics a parameter takes."""
    return name.partition(":")[2].rpartition("@")[0]


def shown_configuration(config: PipelineConfig) -> dict[str, Any]:
    """The configuration as keys of pages hold it, without the model's path, lists and how prompts were delivered."""
    return config.model_dump(mode="json", exclude={"model": {"name"}, "prompts": DELIVERY})


def printed_configuration(config: PipelineConfig) -> str:
    """The configuration as pages print it and `--config` reads it: what decides the results, paths too."""
    return json.dumps(config.model_dump(mode="json", exclude={"prompts": {"llm": DELIVERY["llm"]}}))


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
    """Publish tables `metrics`, `comparison` (each system minus the first), `wins`, `per_prompt`, `costs`, and a page.

    Args:
        prompts: Artifact with all prompts.
        calibration: Of the classifier; without it no share is corrected.
        systems: Names, the reference first.
        n_seeds: Replicates.
        scale: Share of the configured evaluation images that was drawn, for the page.
        config: Of the pipeline.
        runtime: Which store.
        on_progress: Told how many systems are measured.
        statistics: `sample`, `attributes`, `scores` and perhaps `second` (another classifier's attributes) of each
            system and replicate, named by `parameter`; imported images have one replicate.

    Raises:
        InputError: When the tables do not fit together.
    """
    asked = request(
        config, prompts=prompts, calibration=calibration, systems=systems, n_seeds=n_seeds, scale=scale, **statistics
    )

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        from popalign_core.report.comparison import build_comparison
        from popalign_core.report.markdown import comparison_markdown

        inputs = gather_inputs(store, prompts, calibration, statistics, config, asked, on_progress)
        for name in TABLES:
            build.write_table(name, getattr(inputs, name))
        (build.folder / PAGE).write_text(build_comparison(inputs), encoding="utf-8")
        (build.folder / CARD).write_text(comparison_markdown(inputs), encoding="utf-8")

    return produce(asked, runtime, fill)


def gather_inputs(
    store: Store,
    prompts: ArtifactRef,
    calibration: ArtifactRef | None,
    statistics: Inputs,
    config: PipelineConfig,
    asked: Request,
    on_progress: Progress = no_progress,
) -> "ComparisonInputs":
    """Measure everything that tables and page show."""
    from popalign_core.evaluation.metrics import with_absent_rows
    from popalign_core.report.comparison_inputs import ComparisonInputs

    systems, n_seeds, scale = (asked.config[name] for name in ("systems", "n_seeds", "scale"))
    table = store.read_table(prompts, "prompts")
    frames = [read_system(store, name, n_seeds, statistics) for name in systems]
    calibrated = None if calibration is None else store.read_table(calibration, "calibration")
    tables = measure_systems(table, frames, config, calibrated, on_progress)
    seconds = {name: refs_of("second", name, n_seeds, statistics) for name in systems}
    agreement = [_agreement(store, table, each, seconds[each.name], config) for each in frames if seconds[each.name]]
    samples, scores = (
        {name: refs_of(part, name, n_seeds, statistics) for name in systems} for part in ("sample", "scores")
    )
    scored = {name: list(zip(samples[name], scores[name], strict=True)) for name in systems}
    quality = quality_rows(store, table, scored, config.evaluation)
    more = [rows for rows in (*agreement, quality) if len(rows)]
    tables["metrics"] = with_absent_rows(pd.concat([tables["metrics"], *more], ignore_index=True))
    return ComparisonInputs(
        title="PopAlign comparison",
        reference=systems[0],
        systems=systems,
        axes=config.axes,
        metrics=tables["metrics"],
        comparison=tables["comparison"],
        wins=tables["wins"],
        per_prompt=tables["per_prompt"],
        grids=read_grids(store, table, {name: refs[0] for name, refs in samples.items()}, N_PROMPTS),
        drops=pd.concat([count_drops(each) for each in frames], ignore_index=True),
        costs=pd.concat([count_costs(store, name, refs) for name, refs in samples.items()], ignore_index=True),
        scale=scale,
        n_seeds=n_seeds,
        elsewhere=[name for name in systems if samples[name][0].stage != SAMPLE],
        reproducibility=_reproducibility(store, prompts, asked, config),
        confidence=config.evaluation.confidence,
    )


def measure_systems(
    prompts: pd.DataFrame,
    frames: "Sequence[SystemFrames]",
    config: PipelineConfig,
    calibration: pd.DataFrame | None,
    on_progress: Progress = no_progress,
) -> dict[str, pd.DataFrame]:
    """Tables `metrics`, `comparison`, `wins` and `per_prompt` of systems, the first of which is the reference."""
    from popalign_core.evaluation.metrics import compute_metrics, per_prompt_table
    from popalign_core.evaluation.paired import compare_all
    from popalign_core.evaluation.wins import win_rates

    how = (config.axes, config.evaluation, calibration, config.benchmark_axes)
    metrics, by_prompt = [], []
    for number, each in enumerate(frames, 1):
        metrics.append(compute_metrics(each.name, prompts, each.images, each.attributes, each.scores, *how))
        by_prompt.append(
            per_prompt_table(each.name, prompts, each.images, each.attributes, config.axes, config.benchmark_axes)
        )
        on_progress(number, len(frames) + 1)
    comparison = compare_all(prompts, frames[0], frames[1:], *how)
    wins = win_rates(prompts, frames[0], frames[1:], config.evaluation)
    on_progress(len(frames) + 1, len(frames) + 1)
    return {
        "metrics": pd.concat(metrics, ignore_index=True),
        "comparison": comparison,
        "wins": wins,
        "per_prompt": pd.concat(by_prompt, ignore_index=True),
    }


def _agreement(
    store: Store, prompts: pd.DataFrame, frames: "SystemFrames", second: Sequence[ArtifactRef], config: PipelineConfig
) -> pd.DataFrame:
    """How often another classifier agrees with the first about a system's images: rows of `metrics`."""
    from popalign_core.evaluation.agreement import agreement_rows

    read = pd.concat([store.read_table(ref, "attributes") for ref in second], ignore_index=True)
    both = (frames.attributes, read)
    return agreement_rows(
        frames.name, prompts, frames.images, *both, config.axes, config.evaluation, config.benchmark_axes
    )


def count_drops(frames: "SystemFrames") -> pd.DataFrame:
    """Evaluation images of a system that no class was read off, by reason, and how many images were read in all."""
    read = frames.attributes
    dropped = read.dropna(subset=["drop_reason"]).groupby("drop_reason")["image_id"].nunique()
    numbers = {"system": frames.name, "reason": list(dropped.index), "n": dropped.to_numpy(dtype=np.int64)}
    return pd.DataFrame(numbers).assign(n_images=read["image_id"].nunique())


def refs_of(part: str, system: str, n_seeds: int, statistics: Inputs) -> list[ArtifactRef]:
    """A part of a system's statistics, one artifact a replicate; imported images have one."""
    names = (parameter(part, system, replicate) for replicate in range(n_seeds))
    return [statistics[name] for name in names if name in statistics]


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


def _reproducibility(store: Store, prompts: ArtifactRef, asked: Request, pipeline: PipelineConfig) -> dict[str, str]:
    """The command, artifacts behind the page, library versions and the configuration."""
    config, libraries = asked.config, store.manifest(prompts).libraries
    command = f"popalign compare {' '.join(config['systems'])} --seeds {config['n_seeds']} --config FILE.json"
    sizes = "" if config["scale"] == 1 else f", whose evaluation sizes are scaled by {config['scale']:g} already"
    return {
        "command": f"{command}, the file holding the configuration below{sizes}",
        **asked.inputs,
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(libraries.items())),
        "configuration": printed_configuration(pipeline),
    }
