"""Charts of many systems: a row each, named at the left, so that neither colour nor a legend has to tell them apart."""

from collections.abc import Callable, Sequence

from popalign_core.report.estimates import SYMBOLS, WORDS, Estimate, Status, interval_words
from popalign_core.report.measure_names import direction, number
from popalign_core.report.svg_shapes import (
    ALIGNED_FILL,
    BASE_FILL,
    WIDTH,
    dot,
    line,
    rect,
    scale,
    svg,
    text,
    text_label,
    whisker,
)

NAMES = 128
"""Where the drawing begins; the systems' names stand to the left."""
_STEP = 22
_RIGHT = WIDTH - 72
"""Where the drawing ends; the values stand to the right."""


def forest(title: str, metric: str, rows: Sequence[tuple[str, Estimate, Status]]) -> str:
    """Differences to the reference, each with its interval, and a line at zero.

    Args:
        title: For screen readers.
        metric: How values are written, and which way is better.
        rows: (system, system minus reference, what may be said); dots are full where that is more than "no clear
            change".
    """
    ends = [v for _, e, _ in rows for v in (e.value, e.low, e.high) if v == v]
    x = scale(min(0.0, *ends, 0.0), max(0.0, *ends, 0.0), NAMES + 6, _RIGHT)
    height = _STEP * len(rows) + 22
    parts = [line(x(0), 0, x(0), height - 18, "target"), text(x(0), height - 5, "0", "middle", "soft")]
    better = ("← better", x(0) - 8, "end") if direction(metric) < 0 else ("better →", x(0) + 8, "start")
    parts.append(text(better[1], height - 5, better[0], better[2], "soft"))
    for place, (name, difference, status) in enumerate(rows):
        y = _STEP * place + 11
        parts.append(text_label(y + 4, name, NAMES))
        if not difference.is_measured:
            parts.append(text(WIDTH, y + 4, "not measured", "end", "soft"))
            continue
        parts += _interval(difference, y, x)
        kind = "full" if status in ("improved", "worse") else "hollow"
        parts.append(dot(x(difference.value), y, kind, _in_words(name, difference, metric, signed=True)))
        value = f"{number(difference.value, metric, signed=True)} {SYMBOLS[status]}"
        parts.append(text(WIDTH, y + 4, value, "end", "value"))
    description = "; ".join(f"{_in_words(name, e, metric, signed=True)}, {WORDS[status]}" for name, e, status in rows)
    return svg(height, f"{title}: {description}", parts)


def system_bars(
    title: str, metric: str, rows: Sequence[tuple[str, Estimate]], reference: str, target: float | None = None
) -> str:
    """One measure of every system as bars from zero with intervals; the reference is hatched.

    Args:
        title: For screen readers.
        metric: How values are written.
        rows: (system, value).
        reference: The system that is hatched.
        target: Where to draw a dashed line; None for none.
    """
    ends = [v for _, e in rows for v in (e.value, e.high) if v == v]
    x = scale(0.0, max([*ends, target or 0.0]) or 1.0, NAMES, _RIGHT)
    first = 16 if target is not None else 2
    height = first + _STEP * len(rows)
    parts = []
    for place, (name, value) in enumerate(rows):
        y = first + _STEP * place
        parts.append(text_label(y + 15, name, NAMES))
        if value.is_measured:
            fill = BASE_FILL if name == reference else ALIGNED_FILL
            parts.append(rect(NAMES, y + 4, x(value.value) - NAMES, 14, fill))
            parts += _interval(value, y + 11, x)
        shown = number(value.value, metric) if value.is_measured else "not measured"
        parts.append(text(WIDTH, y + 15, shown, "end", "value"))
    if target is not None:
        parts.append(line(x(target), first, x(target), height, "target"))
        parts.append(text(x(target), 11, "target", "middle", "soft"))
    parts.append(line(NAMES, first, NAMES, height, "axis"))
    description = "; ".join(_in_words(name, value, metric) for name, value in rows)
    aim = f", target {number(target, metric)}" if target is not None else ""
    return svg(height, f"{title}{aim}: {description}", parts)


def strips(title: str, rows: Sequence[tuple[str, Sequence[float]]], floor: float, largest: float) -> str:
    """Discrepancies of all prompts of every system: a ring a prompt, a bar at their mean, a line at the floor."""
    x = scale(0.0, largest, NAMES + 6, _RIGHT)
    height = 18 + _STEP * len(rows) + 16
    parts = [line(x(floor), 15, x(floor), height - 14, "target"), text(x(floor), 11, "fair", "middle", "soft")]
    parts += [text(x(end), height - 3, f"{end:.2g}", "middle", "soft") for end in (0.0, largest)]
    description = []
    for place, (name, values) in enumerate(rows):
        y = 18 + _STEP * place + 11
        known = [value for value in values if value == value]
        parts += [text_label(y + 4, name, NAMES), line(NAMES + 6, y, _RIGHT, y, "tick")]
        parts += [dot(x(value), y, "ring", f"{name} {value:.2f}", radius=3.5) for value in known]
        if known:
            mean = sum(known) / len(known)
            parts.append(line(x(mean), y - 9, x(mean), y + 9, "mean"))
            description.append(f"{name} {mean:.2f}, from {min(known):.2f} to {max(known):.2f}")
        parts.append(text(WIDTH, y + 4, f"{mean:.2f}" if known else "no face", "end", "value"))
    return svg(height, f"{title}: mean {'; '.join(description)}", parts)


def dumbbells(title: str, rows: Sequence[tuple[str, float, float]], floor: float, largest: float) -> str:
    """Discrepancy of each prompt under the reference (hollow) and another system (full), joined by a line.

    Args:
        title: For screen readers.
        rows: (prompt, reference, other) in the order to draw; NaN where no face was read.
        floor: What a fair sampler would show.
        largest: Right end of the scale.
    """
    x = scale(0.0, largest, NAMES + 6, WIDTH - 40)
    step, first = 17, 16
    height = first + step * len(rows) + 4
    parts = [line(x(floor), first - 3, x(floor), height, "target"), text(x(floor), 11, "fair", "middle", "soft")]
    for place, (prompt, before, after) in enumerate(rows):
        y = first + step * place + 9
        parts.append(text_label(y + 4, prompt, NAMES))
        if before == before and after == after:
            parts.append(line(x(before), y, x(after), y, "join"))
        for value, kind in ((before, "hollow"), (after, "full")):
            if value == value:
                parts.append(dot(x(value), y, kind, f"{prompt} {value:.2f}", radius=3.5))
        parts.append(text(WIDTH, y + 4, f"{after:.2f}" if after == after else "no face", "end", "value"))
    description = ", ".join(f"{name} {_discrepancy(before)} to {_discrepancy(after)}" for name, before, after in rows)
    return svg(height, f"{title}: {description}", parts)


def _interval(estimate: Estimate, y: float, x: Callable[[float], float]) -> list[str]:
    return [whisker(y, x(estimate.low), x(estimate.high))] if estimate.low == estimate.low else []


def _in_words(name: str, estimate: Estimate, metric: str, *, signed: bool = False) -> str:
    if not estimate.is_measured:
        return f"{name} not measured"
    ends = interval_words(estimate, metric, signed=signed)
    return f"{name} {number(estimate.value, metric, signed=signed)}" + (f" ({ends})" if ends else "")


def _discrepancy(value: float) -> str:
    return f"{value:.2f}" if value == value else "no face"
