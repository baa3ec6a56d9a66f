"""Charts as inline SVG, 340 units wide so that their text stays readable on a phone.

Base and aligned differ in colour (orange and blue, which every kind of colour vision tells apart), in lightness
and in pattern (hatched and solid), and carry their numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from popalign_core.report.svg_shapes import (
    ALIGNED_FILL,
    BASE_FILL,
    LEFT,
    WIDTH,
    Bar,
    line,
    path,
    rect,
    svg,
    text,
    text_label,
    whisker,
)


def legend(base: str, aligned: str) -> str:
    """What hatched and solid mean."""
    items = ((BASE_FILL, "#c25e00", base), (ALIGNED_FILL, ALIGNED_FILL, aligned))
    return '<p class="legend">' + "".join(
        f'<span><svg width="22" height="14" aria-hidden="true"><rect x=".5" y=".5" width="21" height="13" '
        f'fill="{fill}" stroke="{edge}"/></svg> {escape(name)}</span>'
        for fill, edge, name in items
    ) + "</p>"  # fmt: skip


def class_histogram(
    title: str, classes: Sequence[str], base: Sequence[Bar], aligned: Sequence[Bar], target: Sequence[float]
) -> str:
    """Shares of the classes of an axis, each with its interval, and a line at the target."""
    row, first = 44, 18
    height = first + row * len(classes) + 18
    largest = max([*target, *(bar.high for bar in (*base, *aligned))])
    x = _scale(largest)
    parts = [line(x(t), first, x(t), height - 16, "tick") for t in (0.25, 0.5, 0.75, 1.0) if t <= largest]
    parts += [text(x(t), height - 4, f"{t:.0%}", "middle", "soft") for t in (0.0, 0.25, 0.5, 0.75, 1.0) if t <= largest]
    parts.append(text(x(target[0]), 11, "target", "middle", "soft"))
    for place, name in enumerate(classes):
        y = first + row * place
        parts.append(text_label(y + 23, name))
        values = []
        for shift, bar, fill in ((3, base[place], BASE_FILL), (21, aligned[place], ALIGNED_FILL)):
            parts.append(rect(LEFT, y + shift, x(bar.value) - LEFT, 16, fill))
            parts.append(whisker(y + shift + 8, x(bar.low), x(bar.high)))
            values.append(text(x(max(bar.high, bar.value)) + 5, y + shift + 12, f"{bar.value:.0%}", "start", "value"))
        parts += [line(x(target[place]), y, x(target[place]), y + row, "target"), *values]
    parts.append(line(LEFT, first, LEFT, height - 16, "axis"))
    description = ", ".join(
        f"{name} {b.value:.0%} before and {a.value:.0%} after, target {t:.0%}"
        for name, b, a, t in zip(classes, base, aligned, target, strict=True)
    )
    return svg(height, f"{title}: {description}", parts)


def prompt_bars(title: str, rows: Sequence[tuple[str, float, float]], floor: float, largest: float) -> str:
    """A pair of bars a prompt.

    Args:
        title: For screen readers.
        rows: (prompt, base, aligned), in the order to draw; NaN where no face was read.
        floor: What a fair sampler would show, drawn as a line.
        largest: Right end of the scale.
    """
    row, first = 32, 18
    height = first + row * len(rows) + 4
    x = _scale(largest)
    parts = [text(x(floor), 11, "fair", "middle", "soft")]
    for place, (prompt, base, aligned) in enumerate(rows):
        y = first + row * place
        parts.append(text_label(y + 17, prompt))
        for shift, value, fill in ((1, base, BASE_FILL), (14, aligned, ALIGNED_FILL)):
            if value == value:
                parts.append(rect(LEFT, y + shift, max(x(value) - LEFT, 1.0), 11, fill))
            end = x(value) if value == value else LEFT
            parts.append(text(end + 4, y + shift + 9.5, _in_words(value), "start", "value"))
    parts.append(line(x(floor), first - 3, x(floor), height, "target"))
    parts.append(line(LEFT, first - 3, LEFT, height, "axis"))
    description = ", ".join(
        f"{name} {_in_words(base)} before, {_in_words(aligned)} after" for name, base, aligned in rows
    )
    return svg(height, f"{title}: {description}", parts)


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


def _in_words(value: float) -> str:
    return f"{value:.2f}" if value == value else "no face"


def _running_mean(values: Sequence[float]) -> list[float]:
    window = max(1, len(values) // 12)
    sums = [sum(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
    return [total / min(window, end) for end, total in enumerate(sums, start=1)]


def _scale(largest: float) -> Callable[[float], float]:
    return lambda value: LEFT + (WIDTH - 38 - LEFT) * value / largest
