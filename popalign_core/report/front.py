"""Fairness against quality: which systems no other beats in both."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from popalign_core.evaluation.pareto import dominators
from popalign_core.report.cells import Footnotes, estimate_cell, row, table
from popalign_core.report.estimates import Estimate, ReportedMeasure
from popalign_core.report.measure_names import direction, number, scorer_name
from popalign_core.report.svg_shapes import WIDTH, diamond, dot, line, path, scale, short, svg, text

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 50, WIDTH - 14, 22, 206, 240
_LABEL_PX = 10
_PARTIAL = ", of other prompts"


@dataclass(frozen=True)
class FrontPoint:
    """One system, or one value of a parameter.

    Attributes:
        name: As the tables have it.
        x: The first measure, of fairness.
        y: The second, of quality.
        is_partial: Whether the two are of other prompts than those of the rest; drawn as a diamond.
    """

    name: str
    x: Estimate
    y: Estimate
    is_partial: bool = False

    @property
    def signs(self) -> tuple[str, str]:
        """On the front, and dominated."""
        return ("◆", "◇") if self.is_partial else ("●", "○")


def beaten_by(points: Sequence[FrontPoint], x: str, y: str) -> dict[str, str | None]:
    """Name to the name of a point that is better in one measure and no worse in the other; None on the front."""
    scores = [[direction(x) * p.x.value, direction(y) * p.y.value] for p in points]
    found = dominators(scores) if points else []
    return {p.name: None if n is None else points[n].name for p, n in zip(points, found, strict=True)}


def front_chart(
    title: str, points: Sequence[FrontPoint], x: ReportedMeasure, y: ReportedMeasure, *, is_named: bool = False
) -> str:
    """Points with the intervals of both measures; those of the front are full and joined, the others hollow.

    Args:
        title: For screen readers.
        points: Those that have both measures, numbered from 1 in this order, as in `front_table`.
        x: From left to right.
        y: From bottom to top.
        is_named: Whether points carry their names, which must be short, in place of numbers.
    """
    beaten = beaten_by(points, x.metric, y.metric)
    place_x = scale(*_span([p.x for p in points]), _LEFT, _RIGHT)
    place_y = scale(*_span([p.y for p in points]), _BOTTOM, _TOP)
    parts = [*_axes([p.x for p in points], [p.y for p in points], x.metric, y.metric), *_names(x, y)]
    front = sorted((p for p in points if beaten[p.name] is None), key=lambda p: p.x.value)
    parts.append(path([place_x(p.x.value) for p in front], [place_y(p.y.value) for p in front], "front"))
    for p in points:
        if p.x.low == p.x.low:
            parts.append(line(place_x(p.x.low), place_y(p.y.value), place_x(p.x.high), place_y(p.y.value), "thin"))
        if p.y.low == p.y.low:
            parts.append(line(place_x(p.x.value), place_y(p.y.low), place_x(p.x.value), place_y(p.y.high), "thin"))
    taken: list[tuple[float, float]] = []
    for n, p in enumerate(points, start=1):
        at = (place_x(p.x.value), place_y(p.y.value))
        kind = "full" if beaten[p.name] is None else "hollow"
        spoken = f"{p.name}: {number(p.x.value, x.metric)}, {number(p.y.value, y.metric)}"
        parts.append((diamond if p.is_partial else dot)(*at, kind, spoken + _PARTIAL * p.is_partial))
        place = _free(at, taken)
        if place[1] > at[1]:  # the number had to move: show whose it is
            parts.append(line(*at, place[0], place[1] - 4, "thin"))
        parts.append(text(*place, short(p.name, 12) if is_named else str(n), "start", "value"))
    description = "; ".join(
        f"{n} {p.name} {'dominated' if beaten[p.name] else 'on the Pareto front'}{_PARTIAL * p.is_partial}"
        for n, p in enumerate(points, start=1)
    )
    return svg(_HEIGHT, f"{title}: {description}", parts)


def front_table(points: Sequence[FrontPoint], x: ReportedMeasure, y: ReportedMeasure, head: str = "System") -> str:
    """The points in numbers, and which of them are dominated."""
    heads = (head, x.name, y.name, "Pareto front")
    beaten, notes, rows = beaten_by(points, x.metric, y.metric), Footnotes(), []
    for n, p in enumerate(points, start=1):
        other = beaten[p.name]
        full, hollow = p.signs
        said = f"<b>{full} on the Pareto front</b>" if other is None else f"{hollow} dominated by {escape(other)}"
        said += _PARTIAL * p.is_partial
        cells = (estimate_cell(p.x, x.metric, notes), estimate_cell(p.y, y.metric, notes), said)
        rows.append(row(heads, f"{n} {p.name}", cells))
    return table(heads, rows) + str(notes)


def _span(estimates: Sequence[Estimate]) -> tuple[float, float]:
    ends = [v for e in estimates for v in (e.value, e.low, e.high) if v == v]
    margin = 0.04 * (max(ends) - min(ends)) or abs(ends[0]) or 1.0
    return min(ends) - margin, max(ends) + margin


def _axes(xs: Sequence[Estimate], ys: Sequence[Estimate], x: str, y: str) -> list[str]:
    parts = [line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, "axis"), line(_LEFT, _TOP, _LEFT, _BOTTOM, "axis")]
    (left, right), (low, high) = _span(xs), _span(ys)
    parts += [
        text(_LEFT, _BOTTOM + 13, number(left, x), "start", "soft"),
        text(_RIGHT, _BOTTOM + 13, number(right, x), "end", "soft"),
        text(_LEFT - 4, _BOTTOM, number(low, y), "end", "soft"),
        text(_LEFT - 4, _TOP + 6, number(high, y), "end", "soft"),
    ]
    return parts


def _names(x: ReportedMeasure, y: ReportedMeasure) -> list[str]:
    arrow_x = "← fairer" if direction(x.metric) < 0 else "fairer →"
    arrow_y = "↓ better" if direction(y.metric) < 0 else "↑ better"
    return [
        text((_LEFT + _RIGHT) / 2, _BOTTOM + 13, arrow_x, "middle", "soft"),
        text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, x.name, "middle", "label"),
        text(_LEFT - 4, 12, f"{arrow_y}: {scorer_name(y.metric)}", "start", "label"),
    ]


def _free(at: tuple[float, float], taken: list[tuple[float, float]]) -> tuple[float, float]:
    """A place for a number near its point, where no other number stands."""
    x, y = at[0] + 6, at[1] - 4
    while any(abs(x - other[0]) < 1.3 * _LABEL_PX and abs(y - other[1]) < _LABEL_PX for other in taken):
        y += _LABEL_PX
    taken.append((x, y))
    return x, y
