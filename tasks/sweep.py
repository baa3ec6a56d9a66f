"""Stage `sweep`: what parameters do to fairness and quality, from a comparison of the systems that stand for them."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.sweeps import Point, configured_value
from storage.store import ArtifactRef, Build, Store
from tasks.comparison import printed_configuration, shown_configuration
from tasks.stage import Progress, Request, no_progress, produce

if TYPE_CHECKING:
    from popalign_core.report.comparison_inputs import SweepInputs

STAGE = "sweep"
VERSION = "2"

_MEASURE = ["benchmark", "metric", "axis"]


def request(
    config: PipelineConfig, *, comparison: ArtifactRef, points: Sequence[Point], failed: Mapping[str, str]
) -> Request:
    """What the key depends on: the comparison, and which system of it stands for what."""
    payload = {
        "points": [list(astuple(point)) for point in points],
        "failed": dict(failed),
        "configuration": shown_configuration(config),
    }
    return Request(STAGE, VERSION, payload, {"comparison": comparison.key})


def tabulate_sweep(
    comparison: ArtifactRef,
    *,
    points: Sequence[Point],
    failed: Mapping[str, str],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish tables `points` and `front` (which of them another dominates), and a page a parameter.

    Args:
        comparison: Of the systems that the points are.
        points: Of the sweep, those that failed among them.
        failed: Name of a point to the reason why there is nothing to measure.
        config: Of the pipeline, with the points as systems.
        runtime: Which store.
        on_progress: Told how many pages are written.

    Raises:
        InputError: When nothing was measured.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        from popalign_core.report.sweep import build_sweep

        scale = store.manifest(comparison).payload["config"]["scale"]
        table = list_points(store.read_table(comparison, "metrics"), points, failed)
        build.write_table("points", table)
        fronts, pages = [], list(table.groupby("parameter", sort=False))
        for number, (parameter, rows) in enumerate(pages, 1):
            inputs = _inputs(str(parameter), rows.reset_index(drop=True), points, comparison, config, scale)
            (build.folder / page_name(str(parameter))).write_text(build_sweep(inputs), encoding="utf-8")
            fronts.append(list_front(inputs))
            on_progress(number, len(pages))
        build.write_table("front", pd.concat(fronts, ignore_index=True))

    return produce(request(config, comparison=comparison, points=points, failed=failed), runtime, fill)


def page_name(parameter: str) -> str:
    """The file of a parameter's page; of a grid's, all parameters."""
    return f"{parameter.replace(', ', '+')}.html"


def list_points(metrics: pd.DataFrame, points: Sequence[Point], failed: Mapping[str, str]) -> pd.DataFrame:
    """Table `points`: every measure at every point; at those that failed absent, with the reason in `note`."""
    measured = metrics.rename(columns={"value": "estimate"}).drop(columns=["n", "scorer"])
    nothing = measured.drop_duplicates(_MEASURE).assign(estimate=np.nan, ci_low=np.nan, ci_high=np.nan, floor=np.nan)
    parts = []
    for point in points:
        if point.name in failed:
            rows = nothing.assign(note=f"not measured: {failed[point.name]}")
        else:
            rows = measured[measured["system"] == point.name]
        parts.append(rows.assign(parameter=point.parameter, value=point.value, order=point.order, system=point.system))
    return pd.concat(parts, ignore_index=True)


def list_front(inputs: "SweepInputs") -> pd.DataFrame:
    """Table `front`: of every point, which other one is no worse in anything and better in something; "" if none is."""
    from popalign_core.report.sweep import Sweep

    rows = [
        {
            "parameter": str(inputs.points["parameter"].iloc[0]),
            **dict(zip(("system", "value"), name, strict=True)),
            **dict(zip(("dominated_by_system", "dominated_by_value"), other or ("", ""), strict=True)),
        }
        for name, other in Sweep(inputs).dominated.items()
    ]
    return pd.DataFrame(rows)


def _inputs(
    parameter: str,
    rows: pd.DataFrame,
    points: Sequence[Point],
    comparison: ArtifactRef,
    config: PipelineConfig,
    scale: float,
) -> "SweepInputs":
    from popalign_core.report.comparison_inputs import SweepInputs

    systems = list(dict.fromkeys(point.system for point in points))
    usual = {configured_value(config, system, parameter) for system in systems}
    reproducibility = {"comparison": str(comparison), "configuration": printed_configuration(config)}
    return SweepInputs(
        title=f"PopAlign sweep of {parameter}",
        points=rows if len(systems) > 1 else rows.drop(columns="system"),
        axes=config.axes,
        reference=usual.pop() if len(usual) == 1 else "",
        scale=scale,
        reproducibility=reproducibility,
        confidence=config.evaluation.confidence,
    )
