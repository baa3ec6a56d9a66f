"""The line chart: scaled to its series, names apart."""

import re

from popalign_core.report.charts import Line, lines


def test_lines_are_scaled_and_named_apart() -> None:
    series = [
        Line("G1", [0.0, 10.0], [0.5, 1.0], "line-1"),
        Line("G3", [0.0, 10.0], [0.0, 0.98], "line-3"),
        Line("", [0.0, 10.0], [0.2, 0.2], "dotted"),
    ]
    svg = lines("mass & more", series, "step")
    assert 'aria-label="mass &amp; more: G1 ends at 1, G3 ends at 0.98"' in svg
    points = re.findall(r'points="([^"]+)" class="([\w-]+)"', svg)
    assert [kind for _, kind in points] == ["line-1", "line-3", "dotted"]
    # the largest value is at the top, 0 on the axis
    assert points[0][0].split()[1].endswith(",12.0")
    assert points[1][0].split()[0].endswith(",132.0")
    heights = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*class="value"', svg)]
    assert len(heights) == 2
    assert abs(heights[0] - heights[1]) >= 11
