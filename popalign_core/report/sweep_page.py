"""What one parameter does to fairness and quality: the paper's Figures 6 and 7, and Table 4, with the Pareto front.

Figures 9 and 10 are the same of the one-dimensional experiment; `popalign synthetic` draws them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape

import pandas as pd

from popalign_core.evaluation.pareto import dominators
from popalign_core.report.cells import MOST_COLUMNS, NOTHING, Footnotes, estimate_cell, row, table
from popalign_core.report.comparison_inputs import SweepInputs, check_sweep
from popalign_core.report.document import definitions, details, figures, html_page, quick_look, warning
from popalign_core.report.estimates import (
    UNKNOWN,
    Estimate,
    ReportedMeasure,
    by_measure,
    deciding_benchmarks,
    measures_of,
)
from popalign_core.report.front import FrontPoint, front_chart, front_table
from popalign_core.report.limits import few_images
from popalign_core.report.measure_names import FAIRNESS, column_name, direction, floor_words, is_shown, number
from popalign_core.report.trend import trend_chart


def build_sweep(inputs: SweepInputs) -> str:
    """Build the page.

    Args:
        inputs: The measures at every value.

    Returns:
        A complete HTML document.

    Raises:
        InputError: When nothing was measured, or the points are of several parameters.
    """
    check_sweep(inputs)
    sweep = Sweep(inputs)
    return html_page(inputs.title, _head(sweep), _sections(sweep))


@dataclass(frozen=True)
class Sweep:
    """The points by measure, series and value of the parameter."""

    inputs: SweepInputs

    @cached_property
    def parameter(self) -> str:
        """Its name."""
        return str(self.inputs.points["parameter"].iloc[0])

    @cached_property
    def values(self) -> list[str]:
        """The parameter's values as text, in their order."""
        return list(dict.fromkeys(self.inputs.points.sort_values("order", kind="stable")["value"].astype(str)))

    @cached_property
    def series(self) -> list[str]:
        """The systems swept; one without a name where there is no such column."""
        return list(dict.fromkeys(self._rows["series"]))

    @cached_property
    def measures(self) -> list[ReportedMeasure]:
        """What the charts and the table show; the rest stays in the points."""
        return [m for m in measures_of(self._rows) if is_shown(m.metric, is_crowded=True)]

    @cached_property
    def quality(self) -> list[ReportedMeasure]:
        """Scores of pictures; those of the very pictures whose classes are counted first."""
        found = [m for m in self.measures if not m.axis and m.metric != "no_face_share"]
        return sorted(found, key=lambda m: m.benchmark not in self.benchmarks.values())

    @cached_property
    def benchmarks(self) -> dict[str, str]:
        """Axis to the benchmark that decides."""
        return deciding_benchmarks(self.measures)

    @property
    def fairness(self) -> list[ReportedMeasure]:
        """Mean discrepancy over prompts, of every axis that has one."""
        known = [axis.name for axis in self.inputs.axes if axis.name in self.benchmarks]
        return [ReportedMeasure(self.benchmarks[name], FAIRNESS[1], name) for name in known]

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """(series, value) of every point."""
        return [(name, value) for name in self.series for value in self.values]

    def at(self, series: str, value: str, measure: ReportedMeasure) -> Estimate:
        """What was measured at one value."""
        return self._estimates.get((_name(series, value), measure), UNKNOWN)

    @cached_property
    def dominated(self) -> dict[tuple[str, str], tuple[str, str] | None]:
        """Point to one that is no worse in any axis's discrepancy and any score, and better in one; None if none."""
        goals = [*self.fairness, *(m for m in self.quality if m.benchmark in self.benchmarks.values())]
        goals = [m for m in goals if any(self.at(*name, m).is_measured for name in self.names)]
        scores = [[direction(m.metric) * self.at(*name, m).value for m in goals] for name in self.names]
        found = dominators(scores)
        return {name: None if n is None else self.names[n] for name, n in zip(self.names, found, strict=True)}

    @cached_property
    def _rows(self) -> pd.DataFrame:
        points = self.inputs.points
        series = points["system"].astype(str) if "system" in points else ""
        rows = points.assign(series=series).rename(columns={"value": "at", "estimate": "value"})
        names = [_name(name, value) for name, value in zip(rows["series"], rows["at"].astype(str), strict=True)]
        return rows.assign(system=names, n=0)

    @cached_property
    def _estimates(self) -> dict[tuple[str, ReportedMeasure], Estimate]:
        return by_measure(self._rows)


def _name(series: str, value: str) -> str:
    return f"{series} {value}".strip()


def _head(sweep: Sweep) -> str:
    inputs = sweep.inputs
    usual = f"; the configuration has {inputs.reference}" if inputs.reference else ""
    lines = [f"<b>On the Pareto front:</b> {escape(_front(sweep))}"]
    for measure in sweep.fairness:
        known = [name for name in sweep.names if sweep.at(*name, measure).is_measured]
        if known:
            found, best = min((sweep.at(*name, measure).value, name) for name in known)
            floor = number(sweep.at(*best, measure).floor, measure.metric)
            lines.append(
                f"<b>Lowest {escape(measure.axis)} discrepancy:</b> at {escape(_name(*best))}, "
                f"{number(found, measure.metric)} (a fair sampler: {floor})"
            )
    failed = [_name(*name) for name in sweep.names if not _has_discrepancy(sweep, name)]
    if failed:
        lines.append(f"<b>No discrepancy could be measured at:</b> {escape(', '.join(failed))}")
    items = "".join(f"<li>{text}.</li>" for text in lines)
    warnings = (*quick_look(inputs.scale), *few_images(inputs.points.to_dict("records")))
    return (
        f'<p class="soft">{escape(sweep.parameter)} over {len(sweep.values)} values{escape(usual)}</p>'
        f"{''.join(map(warning, warnings))}"
        f'<div class="verdict" role="note"><ul>{items}</ul></div>'
    )


def _front(sweep: Sweep) -> str:
    measured = [name for name in sweep.names if _has_discrepancy(sweep, name)]
    return ", ".join(_name(*name) for name in measured if sweep.dominated[name] is None) or "none"


def _has_discrepancy(sweep: Sweep, name: tuple[str, str]) -> bool:
    return any(sweep.at(*name, measure).is_measured for measure in sweep.fairness)


def _sections(sweep: Sweep) -> Iterator[tuple[str, str]]:
    yield f"{sweep.parameter} and its effect on fairness and quality (as the paper's Figures 6 and 7)", _trends(sweep)
    yield "Fairness and quality", _fronts(sweep)
    yield "All values (as the paper's Table 4)", _values_table(sweep)
    yield "Limitations", _LIMITS
    yield "Reproducibility", definitions(sweep.inputs.reproducibility)


_LIMITS = (
    "<p>The estimates decide which value is on the Pareto front. Where intervals overlap, it may be chance; compare "
    "two values with <code>popalign compare</code> before you choose. The best of many values looks better than it "
    "is: measure the chosen one again with another seed.</p>"
)


def _trends(sweep: Sweep) -> str:
    first, rest = list[tuple[str, str]](), list[tuple[str, str]]()
    for measure in sweep.measures:
        series = {name: [sweep.at(name, value, measure) for value in sweep.values] for name in sweep.series}
        if any(e.is_measured for row_ in series.values() for e in row_):
            chart = trend_chart(measure.name, measure.metric, sweep.values, series, marked=sweep.inputs.reference)
            (first if measure.metric in FAIRNESS or measure in sweep.quality else rest).append((measure.name, chart))
    share = f"{sweep.inputs.confidence:.0%}"
    lead = (
        f"<p>Vertical lines are {share} intervals; the dashed line is what a fair sampler would show; filled dots mark "
        f"the value of the configuration. Horizontal axis: {escape(sweep.parameter)}.</p>"
    )
    return lead + figures(first) + details("Recall and images without a face", figures(rest))


def _fronts(sweep: Sweep) -> str:
    content = ""
    for y in sweep.quality:
        charts, tables = [], ""
        for x in sweep.fairness:
            known = [FrontPoint(_name(*name), sweep.at(*name, x), sweep.at(*name, y)) for name in sweep.names]
            points = [p for p in known if p.x.is_measured and p.y.is_measured]
            if len(points) > 1:
                title = f"{x.axis} and {y.name}"
                charts.append((title[:1].upper() + title[1:], front_chart(title, points, x, y, is_named=True)))
                tables += details(f"Points: {title}", front_table(points, x, y, sweep.parameter))
        content += figures(charts) + tables
    lead = (
        "<p>Full dots are on the Pareto front: no other value is better in one of the two and no worse in the other. "
        "Hollow ones are dominated.</p>"
    )
    return lead + content if content else ""


def _values_table(sweep: Sweep) -> str:
    tables = ""
    for start in range(0, len(sweep.measures), MOST_COLUMNS):
        columns, notes = sweep.measures[start : start + MOST_COLUMNS], Footnotes()
        heads = (sweep.parameter, *(_head_of(m) for m in columns), "Pareto front")
        rows = []
        for name in sweep.names:
            cells = [_cell(sweep.at(*name, m), m, notes) for m in columns]
            usual = " (configured)" if name[1] == sweep.inputs.reference else ""
            rows.append(row(heads, _name(*name) + usual, [*cells, _place(sweep, name)]))
        tables += table(heads, rows, "main") + str(notes)
    return tables


def _place(sweep: Sweep, name: tuple[str, str]) -> str:
    if not _has_discrepancy(sweep, name):
        return NOTHING
    other = sweep.dominated[name]
    return "<b>● on the Pareto front</b>" if other is None else f"○ dominated by {escape(_name(*other))}"


def _head_of(measure: ReportedMeasure) -> str:
    if measure.metric == "recall":
        return measure.name
    name = column_name(measure.metric, measure.axis)
    return name if measure.axis and measure.benchmark == "neutral" else f"{name}, {measure.benchmark}"


def _cell(estimate: Estimate, measure: ReportedMeasure, notes: Footnotes) -> str:
    return estimate_cell(estimate, measure.metric, notes, more=floor_words(estimate.floor, measure.metric))
