"""Tables of the command line, from numbers worked out by hand."""

import pandas as pd
import pytest

from flows.plan.costs import Cost
from flows.plan.planning import PlannedNode
from flows.plan.steps import Step
from flows.terminal.terminal_tables import (
    Row,
    board_lines,
    cost_lines,
    garbage_lines,
    plan_lines,
    spell_seconds,
    systems_lines,
    verdict_lines,
)
from popalign_core.config import Axis
from popalign_core.report.comparison_inputs import ComparisonInputs
from popalign_core.report.standings import ComparisonResults
from popalign_core.report.verdict import find_verdict
from storage.store import ArtifactRef, GarbageReport
from tasks.stages.prompts import write_prompts

NAN = float("nan")


def row(system: str, metric: str, axis: str, value: float, low: float, high: float, **more: object) -> Row:
    fixed = {"benchmark": "neutral", "floor": NAN, "checkpoint": "a/b", "n": 100}
    found = {"system": system, "metric": metric, "axis": axis, "value": value, "ci_low": low, "ci_high": high}
    return found | fixed | more


def two_systems(rows: list[Row], comparison: list[Row]) -> ComparisonResults:
    axes = (Axis(name="gender", classes=("male", "female")), Axis(name="race", classes=("white", "black")))
    tables = {"metrics": pd.DataFrame(rows), "comparison": pd.DataFrame(comparison)}
    return ComparisonResults(ComparisonInputs(reference="base", systems=("base", "aligned"), axes=axes, **tables))


def test_the_verdict_puts_base_beside_aligned_and_says_who_is_fairer() -> None:
    rows = [
        row("base", "discrepancy_pooled", "gender", 0.42, 0.38, 0.46, floor=0.031),
        row("base", "clip_score", "", 26.5, NAN, NAN),
        row("base", "share:male", "gender", 0.8, 0.7, 0.9),
        row("aligned", "discrepancy_pooled", "gender", 0.11, 0.07, 0.15, floor=0.031),
        row("aligned", "clip_score", "", 26.25, NAN, NAN),
    ]
    lines = verdict_lines(two_systems(rows, [row("aligned", "discrepancy_pooled", "gender", -0.31, -0.35, -0.27)]))
    assert lines[1].split("  ")[0] == "pooled discrepancy, gender"
    assert "0.420 [0.380, 0.460]" in lines[1]
    assert "0.110 [0.070, 0.150]" in lines[1]
    assert lines[1].endswith("0.031")
    assert lines[2].split() == ["CLIP", "score,", "neutral", "26.500", "26.250"]
    assert lines[3:6] == [
        "",
        "Fairer on gender",
        "Gender discrepancy: all prompts together 0.420 → 0.110 (improved; a fair sampler would show 0.031).",
    ]


def test_the_closing_verdict_is_the_reports_whose_p_value_counts() -> None:
    measured = [
        row(name, metric, "race", 0.4, 0.3, 0.5)
        for name in ("base", "aligned")
        for metric in ("discrepancy_pooled", "discrepancy_per_prompt")
    ]

    def verdict(low: float, high: float, p_adjusted: float, per_prompt: float = 0.0) -> str:
        change = row("aligned", "discrepancy_pooled", "race", 0.1, low, high, p_adjusted=p_adjusted)
        ends = per_prompt - 0.01, per_prompt + 0.01
        other = row(
            "aligned", "discrepancy_per_prompt", "race", per_prompt, *ends, p_adjusted=0.01 if per_prompt else 1.0
        )
        inputs = two_systems(measured, [change, other])
        lines = verdict_lines(inputs)
        assert lines[lines.index("") + 1] == find_verdict(inputs).headline
        return find_verdict(inputs).headline

    assert verdict(-0.2, -0.1, 0.01) == "Fairer on race"
    assert verdict(-0.2, -0.1, 0.3) == "No clear change in fairness"
    assert verdict(-0.2, -0.1, 0.01, per_prompt=0.2) == "Less fair on race"
    assert verdict(0.1, 0.2, 0.01) == "Less fair on race"


def test_every_system_has_the_floor_of_its_own_number_of_images() -> None:
    rows = [
        row(name, "discrepancy_pooled", "gender", 0.4, 0.3, 0.5, floor=floor)
        for name, floor in (("base", 0.031), ("theirs", 0.354))
    ]
    assert systems_lines(rows, ["base", "theirs", "none"]) == [
        "pooled discrepancy, gender",
        "  base    0.400 [0.300, 0.500] (floor 0.031)",
        "  theirs  0.400 [0.300, 0.500] (floor 0.354)",
        "  none    -",
    ]


def test_the_plan_counts_what_is_left() -> None:
    nodes = [
        PlannedNode(Step("prompts", write_prompts), ArtifactRef("prompts", "prompts-v1-aa"), is_hit=True),
        PlannedNode(Step("sample", write_prompts), ArtifactRef("sample", "sample-v1-bb"), is_hit=False, n_images=96),
        PlannedNode(
            Step("attributes", write_prompts), ArtifactRef("attributes", "attributes-v1-cc"), is_hit=False, n_images=96
        ),
        PlannedNode(Step("train", write_prompts), ArtifactRef("train", "train-v1-dd"), is_hit=False, n_steps=40),
    ]
    lines = plan_lines(nodes)
    assert lines[0].split() == ["prompts", "hit", "prompts/prompts-v1-aa"]
    assert lines[1].split() == ["sample", "miss", "96", "images", "sample/sample-v1-bb"]
    # Images are drawn once, however many stages read them.
    assert lines[-1] == "3 of 4 stages to run: about 96 images to sample, 40 training steps"
    assert plan_lines(nodes[:1])[-1] == "all 1 stages are in the store"


def test_the_plan_says_what_is_left_in_time_disk_and_calls() -> None:
    nodes = [
        PlannedNode(Step(node, write_prompts), ArtifactRef("a", f"a-v1-{node}"), is_hit=node == "report")
        for node in ("prompts", "sample", "train", "report")
    ]
    costs = {"prompts": Cost(40.0, n_calls=3), "sample": Cost(3700.0, 3 * 2**20), "train": Cost(None)}
    lines = plan_lines(nodes, costs)
    assert [line.split("a/a")[0].split() for line in lines[:4]] == [
        ["prompts", "miss", "40", "s"],
        ["sample", "miss", "1", "h", "1", "min"],
        ["train", "miss", "?"],
        ["report", "hit"],
    ]
    assert lines[-2] == "about 1 h 2 min, 3.0 MiB in the store, 3 or more calls of the language model"
    assert lines[-1] == ("not included, no rate known on this machine: train; `popalign plan --measure` measures them")
    assert len(cost_lines({"sample": Cost(1.0)})) == 1


@pytest.mark.parametrize(("seconds", "said"), [(59.4, "59 s"), (59.6, "1 min 0 s"), (3599.7, "1 h 0 min")])
def test_seconds_are_spelt_in_two_units(seconds: float, said: str) -> None:
    assert spell_seconds(seconds) == said


def test_the_leaderboard_shows_headlines_only() -> None:
    lines = board_lines(
        [
            row("checkpoint", "discrepancy_per_prompt", "race", 0.5, 0.4, 0.6),
            row("checkpoint", "share:black", "race", 0.1, 0.0, 0.2),
        ]
    )
    assert [line.split() for line in lines] == [
        ["a/b", "per-prompt", "discrepancy,", "race", "0.500", "[0.400,", "0.600]"]
    ]


def test_garbage_is_listed_with_what_it_frees() -> None:
    old, busy = ArtifactRef("train", "train-v1-aa"), ArtifactRef("sample", "sample-v1-bb")
    report = GarbageReport(True, artifacts=[old], scratch=["/s/x"], busy=[busy], freed_bytes=3 * 2**20)
    assert garbage_lines(report) == [
        "would delete train/train-v1-aa",
        "would delete /s/x",
        "kept, in use: sample/sample-v1-bb",
        "would delete 2 folder(s), 3.0 MiB",
    ]
