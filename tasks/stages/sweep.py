"""Stage `sweep`: what parameters do to fairness and quality, from a comparison of the systems that stand for them."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.sweeps import SweepPoint, configured_value
from storage.store import ArtifactRef, Build
from tasks.common.stage_object import Inputs, Progress, Stage
from tasks.stages.page_view import PageView, hashed_configuration

if TYPE_CHECKING:
    from popalign_core.report.comparison_inputs import SweepInputs

_MEASURE = ["benchmark", "metric", "axis"]


class SweepView(PageView):
    """Which system stands for what, and the configuration with the points as systems.

    Attributes:
        points: Of the sweep, those that failed among them.
        failed: Name of a point to the reason why there is nothing to measure.
    """

    points: tuple[SweepPoint, ...]
    failed: dict[str, str]

    @classmethod
    def of(
        cls,
        config: PipelineConfig,
        inputs: Mapping[str, ArtifactRef],
        *,
        points: Sequence[SweepPoint],
        failed: Mapping[str, str],
    ) -> Self:
        """Of a sweep."""
        return cls(configuration=cls.shown(config), points=tuple(points), failed=dict(failed))

    def hashed(self) -> dict[str, Any]:
        """Without paths."""
        return {
            "points": [list(astuple(point)) for point in self.points],
            "failed": self.failed,
            "configuration": hashed_configuration(self.configuration),
        }


def _fill(view: SweepView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write tables `points` and `front` (which of them another dominates), and a page a parameter.

    Raises:
        InputError: When nothing was measured.
    """
    from popalign_core.report.sweep_page import build_sweep

    table = list_points(inputs.read_table("comparison", "metrics"), view.points, view.failed)
    build.write_table("points", table)
    fronts, pages = [], list(table.groupby("parameter", sort=False))
    for number, (parameter, rows) in enumerate(pages, 1):
        page = _inputs(str(parameter), rows.reset_index(drop=True), inputs, view)
        (build.folder / page_name(str(parameter))).write_text(build_sweep(page), encoding="utf-8")
        fronts.append(list_front(page))
        on_progress(number, len(pages))
    build.write_table("front", pd.concat(fronts, ignore_index=True))


def page_name(parameter: str) -> str:
    """The file of a parameter's page; of a grid's, all parameters."""
    return f"{parameter.replace(', ', '+')}.html"


def list_points(metrics: pd.DataFrame, points: Sequence[SweepPoint], failed: Mapping[str, str]) -> pd.DataFrame:
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
    from popalign_core.report.sweep_page import Sweep

    rows = [
        {
            "parameter": str(inputs.points["parameter"].iloc[0]),
            **dict(zip(("system", "value"), name, strict=True)),
            **dict(zip(("dominated_by_system", "dominated_by_value"), other or ("", ""), strict=True)),
        }
        for name, other in Sweep(inputs).dominated.items()
    ]
    return pd.DataFrame(rows)


def _inputs(parameter: str, rows: pd.DataFrame, inputs: Inputs, view: SweepView) -> "SweepInputs":
    from popalign_core.report.comparison_inputs import SweepInputs

    config, comparison = view.configuration, inputs["comparison"]
    systems = list(dict.fromkeys(point.system for point in view.points))
    usual = {configured_value(config, system, parameter) for system in systems}
    return SweepInputs(
        title=f"PopAlign sweep of {parameter}",
        points=rows if len(systems) > 1 else rows.drop(columns="system"),
        axes=config.axes,
        reference=usual.pop() if len(usual) == 1 else "",
        scale=inputs.store.manifest(comparison).payload["config"]["scale"],
        reproducibility={"comparison": str(comparison), "configuration": view.printed()},
        confidence=config.evaluation.confidence,
    )


tabulate_sweep = Stage("sweep", "5", SweepView.of, _fill, inputs=("comparison",))
