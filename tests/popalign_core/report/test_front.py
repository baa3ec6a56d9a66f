"""The Pareto front: who is dominated, and that the chart says the same as the table."""

import re
from dataclasses import replace

import pytest

from popalign_core.report.estimates import Estimate, ReportedMeasure
from popalign_core.report.front import FrontPoint, beaten_by, front_chart, front_table
from tests.support.pages import dots, text_of

X = ReportedMeasure("neutral", "discrepancy_per_prompt", "gender")
Y = ReportedMeasure("neutral", "clip_score", "")


def _point(name: str, x: float, y: float) -> FrontPoint:
    return FrontPoint(name, Estimate(x, x - 0.05, x + 0.05), Estimate(y, y - 0.5, y + 0.5))


POINTS = [_point("base", 0.7, 30.0), _point("fair", 0.2, 30.5), _point("soft", 0.1, 28.0), _point("bad", 0.3, 27.0)]


def test_less_discrepancy_and_more_quality_is_better() -> None:
    assert beaten_by(POINTS, X.metric, Y.metric) == {"base": "fair", "fair": None, "soft": None, "bad": "fair"}


def test_chart_and_table_agree() -> None:
    svg, table = front_chart("t", POINTS, X, Y), text_of(front_table(POINTS, X, Y).replace("</t", " </t"))
    found = dots(svg)
    assert {name: kind for name, (_, _, kind) in found.items()} == {
        "base": "hollow", "fair": "full", "soft": "full", "bad": "hollow",
    }  # fmt: skip
    assert "2 fair 0.200 0.150 to 0.250 30.50 30.00 to 31.00 ● on the Pareto front" in table
    assert "1 base 0.700 0.650 to 0.750 30.00 29.50 to 30.50 ○ dominated by fair" in table
    # Places: a unit of discrepancy goes right, a unit of quality goes up, the same for all points.
    right = (found["base"][0] - found["fair"][0]) / 0.5
    assert found["fair"][0] - found["soft"][0] == pytest.approx(right * 0.1, abs=0.15)
    up = (found["base"][1] - found["fair"][1]) / 0.5
    assert right > 0
    assert up > 0
    assert found["bad"][1] - found["soft"][1] == pytest.approx(up * 1.0, abs=0.3)
    front = re.search(r'<polyline points="([^"]*)" class="front"/>', svg)
    assert front is not None
    assert front[1] == " ".join(f"{found[name][0]:.1f},{found[name][1]:.1f}" for name in ("soft", "fair"))


def test_a_point_of_other_prompts_is_a_diamond() -> None:
    points = [*POINTS[:3], replace(POINTS[3], is_partial=True)]
    svg, table = front_chart("t", points, X, Y), text_of(front_table(points, X, Y).replace("</t", " </t"))
    assert set(dots(svg)) == {"base", "fair", "soft"}
    (corners, kind, spoken) = re.findall(r'<polygon points="([^"]*)" class="(\w+)"><title>([^<]*)', svg)[0]
    assert (kind, spoken) == ("hollow", "bad: 0.300, 27.00, of other prompts")
    xs, ys = zip(*(map(float, corner.split(",")) for corner in corners.split()), strict=True)
    middle = dots(front_chart("t", POINTS, X, Y))["bad"][:2]
    assert (sum(xs) / 4, sum(ys) / 4) == pytest.approx(middle, abs=0.1)
    assert "4 bad dominated, of other prompts" in svg
    assert "◇ dominated by fair, of other prompts" in table


def test_points_on_one_spot_all_keep_their_number() -> None:
    points = [_point(f"s{n}", 0.3, 30.0) for n in range(6)]
    svg = front_chart("t", points, X, Y)
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="start" class="value">\d', svg)
    assert len(set(places)) == 6
    assert "nan" not in svg
