"""Stage `comparison`: systems side by side, from statistics that other stages have read off their images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.evaluation import CONFIGURED, SECOND
from popalign_core.config.presets import preset_name
from storage.store import ArtifactRef, Build, Store
from tasks.common.image_tables import read_images
from tasks.common.stage_object import Inputs, Progress, Stage, no_progress
from tasks.stages.image_grid import read_grids
from tasks.stages.page_view import PageView, hashed_configuration
from tasks.stages.sample import sample_images
from tasks.stages.set_quality import quality_rows
from tasks.stages.train import train_model

if TYPE_CHECKING:
    from popalign_core.evaluation.metrics import SystemFrames
    from popalign_core.report.comparison_inputs import ComparisonInputs

PAGE, CARD = "comparison.html", "comparison.md"
TABLES = ("metrics", "comparison", "wins", "per_prompt", "costs", "readings")
N_PROMPTS = {"neutral": 6, "specific": 3, "generic": 3}
"""Prompts whose images are shown, by kind."""


def parameter(part: str, system: str, replicate: int) -> str:
    """Under which name the stage takes a part (sample, attributes, scores, a reading) of a system's statistics."""
    return f"{part}:{system}@{replicate}"


def reading_part(name: str) -> str:
    """The part that is a further reading of a system's images."""
    return name if name == SECOND else f"reading-{name}"


def system_of(name: str) -> str:
    """Whose statistics a parameter takes."""
    return name.partition(":")[2].rpartition("@")[0]


class ComparisonView(PageView):
    """Which systems, and the whole configuration, which the page shows.

    Attributes:
        systems: Names, the reference first.
        n_seeds: Replicates.
        scale: Share of the configured evaluation images that was sampled.
    """

    systems: tuple[str, ...]
    n_seeds: int
    scale: float

    @classmethod
    def of(
        cls,
        config: PipelineConfig,
        inputs: Mapping[str, ArtifactRef],
        *,
        systems: Sequence[str],
        n_seeds: int,
        scale: float,
    ) -> Self:
        """Of a comparison."""
        return cls(configuration=cls.shown(config), systems=tuple(systems), n_seeds=n_seeds, scale=scale)

    def hashed(self) -> dict[str, Any]:
        """Without paths."""
        return {
            "systems": list(self.systems),
            "n_seeds": self.n_seeds,
            "scale": self.scale,
            "configuration": hashed_configuration(self.configuration),
        }


def _fill(view: ComparisonView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write `TABLES` (`comparison` is of each system minus the first) and a page.

    Inputs are `sample`, `attributes`, `scores` and perhaps further readings (`second` and `reading-NAME`) of each
    system and replicate, named by `parameter`; imported images have one replicate.

    Raises:
        InputError: When the tables do not fit together.
    """
    from popalign_core.report.card_markdown import comparison_markdown
    from popalign_core.report.comparison_page import build_comparison

    page = gather_comparison_inputs(inputs, view, on_progress)
    for name in TABLES:
        build.write_table(name, getattr(page, name))
    (build.folder / PAGE).write_text(build_comparison(page), encoding="utf-8")
    (build.folder / CARD).write_text(comparison_markdown(page), encoding="utf-8")


def gather_comparison_inputs(
    inputs: Inputs, view: ComparisonView, on_progress: Progress = no_progress
) -> "ComparisonInputs":
    """Measure everything that tables and page show."""
    from popalign_core.evaluation.metrics import with_absent_rows
    from popalign_core.report.comparison_inputs import ComparisonInputs

    systems, n_seeds, config, store = view.systems, view.n_seeds, view.configuration, inputs.store
    table = inputs.read_table("prompts", "prompts")
    frames = [read_system(store, name, n_seeds, inputs) for name in systems]
    calibrated = inputs.read_table("calibration", "calibration") if "calibration" in inputs else None
    tables = measure_systems(table, frames, config, calibrated, on_progress)
    others = {each.name: read_other_readings(store, each.name, view, inputs) for each in frames}
    agreement = [
        _agreement(table, each, others[each.name][SECOND], config) for each in frames if SECOND in others[each.name]
    ]
    readings = tabulate_readings(table, frames, others, tables["metrics"], config)
    samples, scores = (
        {name: refs_of(part, name, n_seeds, inputs) for name in systems} for part in ("sample", "scores")
    )
    scored = {name: list(zip(samples[name], scores[name], strict=True)) for name in systems}
    quality = quality_rows(store, table, scored, config.evaluation)
    more = [rows for rows in (*agreement, quality) if len(rows)]
    tables["metrics"] = with_absent_rows(pd.concat([tables["metrics"], *more], ignore_index=True))
    return ComparisonInputs(
        title="PopAlign comparison",
        model=config.model.name,
        preset=preset_name(config),
        reference=systems[0],
        systems=systems,
        axes=config.axes,
        metrics=tables["metrics"],
        comparison=tables["comparison"],
        wins=tables["wins"],
        per_prompt=tables["per_prompt"],
        readings=readings,
        grids=read_grids(store, table, {name: refs[0] for name, refs in samples.items()}, N_PROMPTS),
        drops=pd.concat([tabulate_system_drops(each) for each in frames], ignore_index=True),
        costs=pd.concat([count_costs(store, name, refs) for name, refs in samples.items()], ignore_index=True),
        scale=view.scale,
        n_seeds=n_seeds,
        elsewhere=[name for name in systems if samples[name][0].stage != sample_images.name],
        reproducibility=_reproducibility(inputs, view),
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
        metrics.append(compute_metrics(prompts, each, *how))
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


def read_other_readings(store: Store, system: str, view: ComparisonView, inputs: Inputs) -> dict[str, pd.DataFrame]:
    """Attributes tables of a system's images by name of the further reading, replicates one below the other."""
    tables = {}
    for name in view.configuration.evaluation.other_readings:
        refs = refs_of(reading_part(name), system, view.n_seeds, inputs)
        if refs:
            tables[name] = pd.concat([store.read_table(ref, "attributes") for ref in refs], ignore_index=True)
    return tables


def tabulate_readings(
    prompts: pd.DataFrame,
    frames: "Sequence[SystemFrames]",
    others: Mapping[str, Mapping[str, pd.DataFrame]],
    metrics: pd.DataFrame,
    config: PipelineConfig,
) -> pd.DataFrame:
    """Table `readings`: what is measured on the same images with each way of reading them, the configured one first."""
    from popalign_core.evaluation.metrics import READING_COLUMNS, compute_metrics, of_reading

    parts = [pd.DataFrame(columns=list(READING_COLUMNS))]
    for each in frames:
        if others[each.name]:
            parts.append(of_reading(CONFIGURED, metrics[metrics["system"] == each.name]))
        for name, attributes in others[each.name].items():
            read = replace(each, attributes=attributes, scores=each.scores.iloc[:0])
            rows = compute_metrics(prompts, read, config.axes, config.evaluation, None, config.benchmark_axes)
            parts.append(of_reading(name, rows))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _agreement(
    prompts: pd.DataFrame, frames: "SystemFrames", second: pd.DataFrame, config: PipelineConfig
) -> pd.DataFrame:
    """How often another classifier agrees with the first about a system's images: rows of `metrics`."""
    from popalign_core.evaluation.agreement import agreement_rows

    both = (frames.attributes, second)
    return agreement_rows(
        frames.name, prompts, frames.images, *both, config.axes, config.evaluation, config.benchmark_axes
    )


def tabulate_system_drops(frames: "SystemFrames") -> pd.DataFrame:
    """Evaluation images of a system that no class was read off, by reason, and how many images were read in all."""
    read = frames.attributes
    dropped = read.dropna(subset=["drop_reason"]).groupby("drop_reason")["image_id"].nunique()
    numbers = {"system": frames.name, "reason": list(dropped.index), "n": dropped.to_numpy(dtype=np.int64)}
    return pd.DataFrame(numbers).assign(n_images=read["image_id"].nunique())


def refs_of(part: str, system: str, n_seeds: int, statistics: Mapping[str, ArtifactRef]) -> list[ArtifactRef]:
    """A part of a system's statistics, one artifact a replicate; imported images have one."""
    names = (parameter(part, system, replicate) for replicate in range(n_seeds))
    return [statistics[name] for name in names if name in statistics]


def count_costs(store: Store, system: str, samples: Sequence[ArtifactRef]) -> pd.DataFrame:
    """Table `costs`: what a system's images and its training took, of all replicates, as their manifests say."""
    totals = {("images drawn", "images"): 0, ("denoiser steps", "steps"): 0, ("training", "steps"): 0}
    for sample in samples:
        manifest = store.manifest(sample)
        if sample.stage != sample_images.name:
            continue  # made elsewhere, at what cost we cannot know
        n_images = manifest.rows["images"]
        totals["images drawn", "images"] += n_images
        totals["denoiser steps", "steps"] += n_images * manifest.payload["config"]["sampling"]["n_steps"]
        model = manifest.payload["inputs"].get("model")
        while model is not None:
            training = store.manifest(ArtifactRef(train_model.name, model)).payload
            totals["training", "steps"] += training["config"]["training"]["n_steps"]
            model = training["inputs"].get("start")
    rows = [(system, what, float(value), unit) for (what, unit), value in totals.items() if value]
    return pd.DataFrame(rows, columns=["system", "what", "value", "unit"]).astype({"value": float})


def read_system(store: Store, system: str, n_seeds: int, statistics: Mapping[str, ArtifactRef]) -> "SystemFrames":
    """The statistics of a system, its replicates one below the other."""
    from popalign_core.evaluation.metrics import SystemFrames

    samples = refs_of("sample", system, n_seeds, statistics)
    images = [read_images(store, ref).assign(replicate=replicate) for replicate, ref in enumerate(samples)]
    attributes, scores = (
        [store.read_table(ref, part) for ref in refs_of(part, system, n_seeds, statistics)]
        for part in ("attributes", "scores")
    )
    return SystemFrames(system, *(pd.concat(parts, ignore_index=True) for parts in (images, attributes, scores)))


def _reproducibility(inputs: Inputs, view: ComparisonView) -> dict[str, str]:
    """The command, artifacts behind the page, library versions and the configuration."""
    libraries = inputs.store.manifest(inputs["prompts"]).libraries
    command = f"popalign compare {' '.join(view.systems)} --seeds {view.n_seeds} --config FILE.json"
    sizes = "" if view.scale == 1 else f", whose evaluation sizes are scaled by {view.scale:g} already"
    return {
        "command": f"{command}, the file holding the configuration below{sizes}",
        **{name: ref.key for name, ref in inputs.items()},
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(libraries.items())),
        "configuration": view.printed(),
    }


compare_statistics = Stage(
    "comparison",
    "10",
    ComparisonView.of,
    _fill,
    inputs=("prompts",),
    optional=("calibration", *(f"{part}:*" for part in ("sample", "attributes", "scores", SECOND, "reading-*"))),
)
