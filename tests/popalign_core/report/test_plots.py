"""Charts of many systems: what is drawn is where its value says."""

import re
from collections.abc import Mapping, Sequence

import pytest

from popalign_core.report.estimates import Estimate
from popalign_core.report.plots import dumbbells, forest, strips, system_bars
from popalign_core.report.trend import trend_chart
from tests.support.pages import dots

NAN = float("nan")


def _scale(places: Mapping[str, float], values: Mapping[str, float]) -> tuple[float, float]:
    """Zero and unit of the axis on which all places lie; fails where one does not."""
    (a, b), *_ = [(a, b) for a in values for b in values if values[a] != values[b]]
    unit = (places[b] - places[a]) / (values[b] - values[a])
    zero = places[a] - unit * values[a]
    for name, value in values.items():
        assert places[name] == pytest.approx(zero + unit * value, abs=0.11), name  # places have one digit
    return zero, unit


def _lines(svg: str, kind: str) -> list[tuple[float, ...]]:
    found = re.findall(rf'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="{kind}"/>', svg)
    return [tuple(map(float, places)) for places in found]


def test_forest_draws_differences_intervals_and_zero_on_one_scale() -> None:
    values = {"fair": -0.4, "wide": -0.1, "worse": 0.2}
    rows = [
        ("fair", Estimate(-0.4, -0.5, -0.3), "improved"),
        ("wide", Estimate(-0.1, -0.3, 0.1), "unclear"),
        ("worse", Estimate(0.2, 0.1, 0.3), "worse"),
        ("gone", Estimate(NAN, NAN, NAN, note="not measured: why"), "unmeasured"),
    ]
    svg = forest("difference", "discrepancy_pooled", rows)  # type: ignore[arg-type]
    found = dots(svg)
    zero, unit = _scale({name: found[name][0] for name in values}, values)
    assert _lines(svg, "target")[0][0] == pytest.approx(zero, abs=0.11)
    assert {name: found[name][2] for name in values} == {"fair": "full", "wide": "hollow", "worse": "full"}
    lying = [line for line in _lines(svg, "whisker") if line[1] == line[3]]
    assert [(line[0], line[2]) for line in lying] == [
        pytest.approx((zero + unit * low, zero + unit * high), abs=0.11)
        for low, high in ((-0.5, -0.3), (-0.3, 0.1), (0.1, 0.3))
    ]
    assert "−0.400 ✔" in svg
    assert "+0.200 ✖" in svg
    assert "gone not measured" in svg
    assert "← better" in svg
    assert "better →" in forest("difference", "clip_score", rows)  # type: ignore[arg-type]


def test_bars_are_as_long_as_their_values_and_the_target_stands_at_its_own() -> None:
    rows = [("base", Estimate(0.8, 0.7, 0.9)), ("fair", Estimate(0.4, 0.3, 0.5)), ("gone", Estimate(NAN, NAN, NAN))]
    svg = system_bars("share", "share", rows, "base", 0.5)
    bars = [(float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)]
    assert len(bars) == 2
    assert bars[0][1] == pytest.approx(2 * bars[1][1], abs=0.11)
    assert _lines(svg, "target")[0][0] == pytest.approx(bars[0][0] + bars[0][1] * 0.5 / 0.8, abs=0.11)
    assert svg.count("url(#hatch)") == 1  # the reference
    assert "base 80.0% (70.0 to 90.0); fair 40.0% (30.0 to 50.0); gone not measured" in svg
    assert "nan" not in svg


def test_strips_draw_every_prompt_their_mean_and_the_floor() -> None:
    svg = strips("by prompt", [("a", [0.1, 0.3, NAN]), ("none", [NAN])], floor=0.1, largest=0.7)
    rings = [float(x) for x in re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="3.5" class="ring">', svg)]
    assert len(rings) == 2
    assert _lines(svg, "mean")[0][0] == pytest.approx(sum(rings) / 2, abs=0.11)  # of .1 and .3
    assert _lines(svg, "target")[0][0] == rings[0]  # the floor is .1 as well
    assert "a 0.20, from 0.10 to 0.30" in svg
    assert "no face" in svg


def test_dumbbells_join_reference_and_system() -> None:
    svg = dumbbells("by prompt", [("nurse", 0.6, 0.2), ("poet", 0.5, NAN)], floor=0.1, largest=0.7)
    join = _lines(svg, "join")
    hollow = [float(x) for x in re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="3.5" class="hollow">', svg)]
    full = [float(x) for x in re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="3.5" class="full">', svg)]
    assert [(line[0], line[2]) for line in join] == [(hollow[0], full[0])]
    _scale({"nurse": hollow[0], "poet": hollow[1], "after": full[0]}, {"nurse": 0.6, "poet": 0.5, "after": 0.2})
    assert "nurse 0.60 to 0.20, poet 0.50 to no face" in svg


def _trend(values: Sequence[float], **over: str) -> str:
    row = [Estimate(v, v - 0.1, v + 0.1, 0.05) if v == v else Estimate(NAN, NAN, NAN) for v in values]
    return trend_chart("t", "discrepancy_pooled", ["1", "2", "3", "4"], {"": row}, **over)


def test_trend_places_values_intervals_and_floor() -> None:
    svg = _trend([0.6, NAN, 0.2, 0.4], marked="3")
    found = dots(svg)
    assert {name: kind for name, (_, _, kind) in found.items()} == {"1": "hollow", "3": "full", "4": "hollow"}
    zero, unit = _scale({name: y for name, (_, y, _) in found.items()}, {"1": 0.6, "3": 0.2, "4": 0.4})
    assert unit < 0  # more is higher up
    assert _lines(svg, "target")[0][1] == pytest.approx(zero + unit * 0.05, abs=0.11)
    standing = [line for line in _lines(svg, "whisker") if line[0] == line[2]]
    assert (standing[0][1], standing[0][3]) == pytest.approx((zero + unit * 0.5, zero + unit * 0.7), abs=0.11)
    steps = [found[name][0] for name in ("1", "3", "4")]
    assert steps[1] - steps[0] == pytest.approx(2 * (steps[2] - steps[1]), abs=0.21)
    assert "↓ better" in svg


def test_trend_of_one_value_and_of_many_names() -> None:
    only = trend_chart("t", "clip_score", ["a"], {"": [Estimate(1.0, NAN, NAN)]})
    assert only.count("<circle") == 1
    names = [f"value-{n:04}" for n in range(40)]
    many = trend_chart("t", "clip_score", names, {"": [Estimate(float(n), NAN, NAN) for n in range(40)]})
    shown = re.findall(r'text-anchor="middle" class="soft">(value-\d+)', many)
    assert 1 < len(shown) < 8
    assert many.count("<circle") == 40
