"""Shapes of inline SVG, 340 units wide so that their text stays readable on a phone."""

from collections.abc import Callable, Iterable
from html import escape

WIDTH = 340
LEFT = 116
"""Where bars begin; their names stand to the left."""
BASE_FILL, ALIGNED_FILL = "url(#hatch)", "#0b5394"

PATTERNS = (
    '<svg width="0" height="0" class="defs" aria-hidden="true"><defs><pattern id="hatch" width="6" height="6" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" fill="#fbe0bd"/>'
    '<rect width="2.4" height="6" fill="#c25e00"/></pattern></defs></svg>'
)


def svg(height: float, spoken: str, parts: Iterable[str]) -> str:
    """A drawing with what a screen reader says of it."""
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(spoken)}">{"".join(parts)}</svg>'


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """Values from `low` to `high` onto places from `first` to `last`."""
    return lambda value: first + (last - first) * (value - low) / ((high - low) or 1.0)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line; `kind` is a class of the style sheet, here and below."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    """A bar."""
    edge = "#c25e00" if fill == BASE_FILL else fill
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(height, 0.5):.1f}" '
        f'fill="{fill}" stroke="{edge}"/>'
    )


def dot(x: float, y: float, kind: str, spoken: str, radius: float = 4) -> str:
    """A point, full or hollow by its kind, that names its value when pointed at."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"><title>{escape(spoken)}</title></circle>'


def diamond(x: float, y: float, kind: str, spoken: str, radius: float = 5.5) -> str:
    """A point of another sort, told from a dot without colour."""
    corners = " ".join(
        f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in ((0, -radius), (radius, 0), (0, radius), (-radius, 0))
    )
    return f'<polygon points="{corners}" class="{kind}"><title>{escape(spoken)}</title></polygon>'


def whisker(y: float, low: float, high: float) -> str:
    """An interval, lying."""
    ends = "".join(line(x, y - 4, x, y + 4, "whisker") for x in (low, high))
    return line(low - 1, y, high + 1, y, "halo") + line(low, y, high, y, "whisker") + ends


def upright(x: float, low: float, high: float) -> str:
    """An interval, standing."""
    ends = "".join(line(x - 3, y, x + 3, y, "whisker") for y in (low, high))
    return line(x, low, x, high, "whisker") + ends


def text_label(y: float, name: str, left: float = LEFT) -> str:
    """A name left of the chart, cut to its room; whole when pointed at."""
    shown = short(name, round((left - 6) / 6.4))
    return f"<g><title>{escape(name)}</title>{text(left - 6, y, shown, 'end')}</g>"


def text(x: float, y: float, content: str, anchor: str, kind: str = "label") -> str:
    """Words; `anchor` is start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def path(xs: Iterable[float], ys: Iterable[float], kind: str) -> str:
    """A line through points."""
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline points="{corners}" class="{kind}"/>'


def short(content: str, length: int) -> str:
    """Text of at most `length` characters, with … where it was cut."""
    return content if len(content) <= length else content[: max(length - 1, 1)].rstrip() + "…"
