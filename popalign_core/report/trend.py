"""A measure over the values of a parameter, or over checkpoints through time."""

from collections.abc import Mapping, Sequence
from itertools import cycle

from popalign_core.report.estimates import Estimate, interval_words
from popalign_core.report.measure_names import direction, number
from popalign_core.report.svg_shapes import WIDTH, dot, line, path, scale, short, svg, text, upright

_LEFT, _TOP, _BOTTOM, _HEIGHT = 48, 24, 150, 176
_KINDS = ("line-1", "line-2", "line-3", "dotted")
_TICK_PX = 6.2
"""Width of a letter below the axis."""


def trend_chart(
    title: str, metric: str, ticks: Sequence[str], series: Mapping[str, Sequence[Estimate]], *, marked: str = ""
) -> str:
    """One line a series over evenly spaced places, each point with its interval.

    Args:
        title: For screen readers.
        metric: How values are written, and which way is better.
        ticks: Names of the places, from left to right.
        series: Name to an estimate for every place; those not measured leave a gap. A single series needs no name.
        marked: The place whose points are full; '' for none.
    """
    floors = [e.floor for row in series.values() for e in row if e.floor == e.floor]
    ends = [v for row in series.values() for e in row for v in (e.value, e.low, e.high) if v == v]
    right = WIDTH - (60 if len(series) > 1 else 16)
    x = scale(0, len(ticks) - 1, _LEFT + 10, right - 4)
    y = scale(min(ends + floors), max(ends + floors), _BOTTOM - 4, _TOP + 4)
    parts = [line(_LEFT, _BOTTOM, right, _BOTTOM, "axis"), line(_LEFT, _TOP, _LEFT, _BOTTOM, "axis")]
    arrow = "↓ better" if direction(metric) < 0 else "↑ better"
    parts.append(text(2, 12, arrow, "start", "soft"))
    parts += [
        text(_LEFT - 4, y(v) + 4, number(v, metric), "end", "soft") for v in dict.fromkeys((min(ends), max(ends)))
    ]
    if floors:
        parts.append(line(_LEFT, y(floors[0]), right, y(floors[0]), "target"))
        parts.append(text(_LEFT + 3, y(floors[0]) - 4, "fair", "start", "soft"))
    for n, name in _visible_ticks(ticks, right):
        parts.append(text(x(n), _BOTTOM + 14, name, "middle", "value" if ticks[n] == marked else "soft"))
    description = []
    for (name, row), kind in zip(series.items(), cycle(_KINDS), strict=False):
        known = [(n, e) for n, e in enumerate(row) if e.is_measured]
        parts.append(path([x(n) for n, _ in known], [y(e.value) for _, e in known], kind))
        for n, e in known:
            if e.low == e.low:
                parts.append(upright(x(n), y(e.low), y(e.high)))
            in_words = f"{name} {ticks[n]}: {number(e.value, metric)} ({interval_words(e, metric)})".strip()
            parts.append(dot(x(n), y(e.value), "full" if ticks[n] == marked else "hollow", in_words))
            description.append(in_words)
        if known and len(series) > 1:
            parts.append(text(right + 2, y(known[-1][1].value) + 4, short(name, 9), "start", "value"))
    return svg(_HEIGHT, f"{title}: {'; '.join(description)}", parts)


def _visible_ticks(ticks: Sequence[str], right: float) -> list[tuple[int, str]]:
    """The names below the axis that do not run into each other."""
    room = (right - _LEFT) / max(len(ticks) - 1, 1)
    longest = max(len(tick) for tick in ticks) * _TICK_PX
    step = max(1, -int(-longest // max(room, 1.0)))
    return [(n, short(ticks[n], 12)) for n in range(0, len(ticks), step)]
