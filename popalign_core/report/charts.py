"""Curves as inline SVG, 340 units wide so that their text stays readable on a phone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from popalign_core.report.svg_shapes import (
    WIDTH,
    line,
    path,
    svg,
    text,
)


def curve(title: str, steps: Sequence[float], values: Sequence[float]) -> str:
    """A training curve: every value thin, their running mean thick, first and last mean in numbers."""
    left, top, bottom, height = 48, 12, 112, 134
    mean = _running_mean(values)
    low, high = min(values), max(values)
    span = (high - low) or max(abs(high), 1e-9)
    width = (steps[-1] - steps[0]) or 1.0
    points = [(left + (WIDTH - 12 - left) * (step - steps[0]) / width) for step in steps]

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / span

    parts = [line(left, bottom, WIDTH, bottom, "axis"), line(left, top, left, bottom, "axis")]
    parts += [text(left - 4, y(v) + 4, f"{v:.3g}", "end", "soft") for v in dict.fromkeys((low, high))]
    parts.append(path(points, map(y, values), "thin"))
    parts.append(path(points, map(y, mean), "thick"))
    parts.append(text(left, bottom + 16, f"step {steps[0]:g}", "start", "soft"))
    parts.append(text(WIDTH - 2, bottom + 16, f"step {steps[-1]:g}", "end", "soft"))
    return svg(height, f"{title}: from {mean[0]:.3g} to {mean[-1]:.3g} over {len(values)} steps", parts)


@dataclass(frozen=True)
class Line:
    """A named series; `kind` is a class of the style sheet (line-1, line-2, line-3, dotted)."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    kind: str


def lines(title: str, series: Sequence[Line], x_name: str) -> str:
    """Several series over one axis, each named at its end, from 0 up."""
    left, right, top, bottom, height = 40, WIDTH - 46, 12, 132, 154
    first, last = min(one.xs[0] for one in series), max(one.xs[-1] for one in series)
    largest = max(max(one.ys) for one in series) or 1.0

    def x(value: float) -> float:
        return left + (right - left) * (value - first) / (last - first or 1.0)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / largest

    parts = [line(left, bottom, right, bottom, "axis"), line(left, top, left, bottom, "axis")]
    parts += [text(left - 4, y(value) + 4, f"{value:.2g}", "end", "soft") for value in (0.0, largest)]
    parts += [path(map(x, one.xs), map(y, one.ys), one.kind) for one in series]
    below = -math.inf
    for one in sorted((one for one in series if one.name), key=lambda one: -one.ys[-1]):
        # names that would lie on each other move down
        below = max(y(one.ys[-1]) + 4, below + 11)
        parts.append(text(right + 4, below, one.name, "start", "value"))
    parts.append(text(left, height - 6, f"{x_name} {first:g}", "start", "soft"))
    parts.append(text(right, height - 6, f"{last:g}", "end", "soft"))
    ends = ", ".join(f"{one.name} ends at {one.ys[-1]:.3g}" for one in series if one.name)
    return svg(height, f"{title}: {ends}" if ends else title, parts)


def _running_mean(values: Sequence[float]) -> list[float]:
    window = max(1, len(values) // 12)
    sums = [sum(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
    return [total / min(window, end) for end, total in enumerate(sums, start=1)]
