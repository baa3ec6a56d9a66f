"""The page about one parameter: charts, table and front hold the same numbers."""

import re
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.report.comparison_inputs import POINT_COLUMNS, SweepInputs
from popalign_core.report.sweep_page import Sweep, build_sweep
from tests.support.pages import Page, dots, text_of

NAN = float("nan")
EVIL = '<script>alert("x")</script>'
# The paper's Table 4, gender and CLIP; 0.6 is made up, worse than 0.5 in both.
ROWS = {"0.25": (NAN, NAN), "0.5": (0.184, 28.2), "0.6": (0.2, 27.0), "0.75": (0.170, 26.4)}


def _points() -> pd.DataFrame:
    rows: list[Any] = []
    for order, (value, (gender, clip)) in enumerate(ROWS.items()):
        note = "" if gender == gender else "not measured: the training diverged"
        for metric, axis, estimate, half, floor in (
            ("discrepancy_pooled", "gender", gender, 0.03, 0.006),
            ("discrepancy_per_prompt", "gender", gender, 0.02, 0.056),
            ("clip_score", "", clip, 0.1, NAN),
            ("discrepancy_worst10", "gender", 2 * gender, 0.1, NAN),
        ):
            ends = (estimate, estimate - half, estimate + half, floor)
            rows.append(("training.alpha", value, order, "neutral", metric, axis, *ends, note))
    return pd.DataFrame(rows, columns=list(POINT_COLUMNS)).sort_values("order", ascending=False, kind="stable")


INPUTS = SweepInputs(
    "Sweep of alpha",
    _points(),
    (Axis(name="gender", classes=("male", "female")),),
    "0.5",
    {"command": "popalign sweep"},
)


def test_values_come_in_order_and_dominated_ones_are_marked() -> None:
    sweep = Sweep(INPUTS)
    assert sweep.values == ["0.25", "0.5", "0.6", "0.75"]
    assert sweep.dominated == {("", "0.25"): None, ("", "0.5"): None, ("", "0.6"): ("", "0.5"), ("", "0.75"): None}
    assert sweep.series == [""]


def test_page_says_front_best_and_what_failed() -> None:
    html = build_sweep(INPUTS)
    text = text_of(html)
    assert "On the Pareto front: 0.5, 0.75." in text
    assert "Lowest gender discrepancy: at 0.75, 0.170 (a fair sampler: 0.056)." in text
    assert "No discrepancy could be measured at: 0.25." in text
    table = text_of(html[html.index("All values") :].replace("</t", " </t"))
    assert "0.5 (configured) 0.184 0.154 to 0.214; fair 0.006 0.184 0.164 to 0.204; fair 0.056 28.20" in table
    assert "○ dominated by 0.5" in table
    assert "0.25 not measureda not measureda not measureda –" in table
    assert "a the training diverged" in table
    assert "worst" not in table
    assert "script" not in Page(html).tags


def test_chart_marks_the_configured_value_and_skips_the_failed_one() -> None:
    html = build_sweep(INPUTS)
    chart = html[html.index("Gender discrepancy, all prompts together</figcaption>") :]
    found = dots(chart[: chart.index("</svg>")])
    assert {name: kind for name, (_, _, kind) in found.items()} == {"0.5": "full", "0.6": "hollow", "0.75": "hollow"}
    unit = (found["0.75"][1] - found["0.6"][1]) / (0.170 - 0.2)
    assert found["0.5"][1] - found["0.6"][1] == pytest.approx(unit * (0.184 - 0.2), abs=0.2)


def test_several_systems_are_lines_of_their_own() -> None:
    points = pd.concat([_points().assign(system="base"), _points().assign(system="aligned")], ignore_index=True)
    sweep = replace(INPUTS, points=points)
    html = build_sweep(sweep)
    assert Sweep(sweep).series == ["base", "aligned"]
    chart = html[html.index("Gender discrepancy, all prompts together</figcaption>") :]
    chart = chart[: chart.index("</svg>")]
    assert re.findall(r'class="(line-\d)"', chart) == ["line-1", "line-2"]
    assert chart.count("<circle") == 6
    assert "aligned 0.75" in text_of(html)


def test_sweeps_that_do_not_fit_are_refused() -> None:
    points = _points()
    both = pd.concat([points, points.assign(parameter="sampling.guidance_scale")], ignore_index=True)
    with pytest.raises(InputError, match="over one parameter"):
        build_sweep(replace(INPUTS, points=both))
    with pytest.raises(InputError, match=r"nothing was measured at any value of 'training\.alpha'"):
        build_sweep(replace(INPUTS, points=points.assign(estimate=NAN)))


def test_text_from_outside_is_escaped() -> None:
    points = _points().assign(parameter=EVIL, note=EVIL)
    points["value"] = points["value"].replace("0.6", EVIL)
    axes = (Axis(name=EVIL, classes=("a", "b")),)
    html = build_sweep(SweepInputs(EVIL, points.replace("gender", EVIL), axes, EVIL, {EVIL: EVIL}))
    assert "script" not in Page(html).tags


def test_a_sweep_of_too_few_images_says_that_it_means_nothing() -> None:
    assert "These figures mean nothing" not in text_of(build_sweep(INPUTS))
    points = _points()
    points.loc[points["metric"] == "discrepancy_pooled", "floor"] = 0.18
    said = text_of(build_sweep(replace(INPUTS, points=points)))
    assert "a perfectly fair model would show a discrepancy of 0.18 too" in said
