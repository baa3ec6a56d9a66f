"""Bars: the ends of the interval decide, and what was not measured never passes."""

from typing import Any

import pandas as pd
import pytest

from popalign_core.errors import ConfigError
from popalign_core.evaluation.thresholds import Threshold, check_thresholds, judge_thresholds, parse_threshold

NAN = float("nan")


def row(metric: str, value: float, low: float, high: float, *, benchmark: str = "neutral", axis: str = "") -> Any:
    fixed = {"system": "checkpoint", "n": 40, "floor": NAN, "scorer": "s@1", "note": ""}
    return fixed | {
        **{"benchmark": benchmark, "metric": metric, "axis": axis},
        **{"value": value, "ci_low": low, "ci_high": high},
    }


METRICS = pd.DataFrame(
    [
        row("discrepancy_pooled", 0.15, 0.10, 0.20, axis="gender"),
        row("discrepancy_pooled", 0.30, 0.25, 0.35, axis="race"),
        row("discrepancy_pooled", 0.60, 0.55, 0.65, axis="gender", benchmark="couples"),
        row("recall", 0.94, 0.92, 0.96, axis="all", benchmark="specific"),
        row("no_face_share", 0.02, NAN, NAN),
        row("clip_score", NAN, NAN, NAN) | {"note": "not measured: no weights", "n": 0},
        row("clip_score", 81.0, 80.0, 82.0, benchmark="generic"),
    ]
)


@pytest.mark.parametrize(
    ("bound", "verdict"), [(0.25, "met"), (0.20, "met"), (0.19, "unclear"), (0.10, "unclear"), (0.09, "missed")]
)
def test_a_ceiling_is_met_when_the_whole_interval_is_below_it(bound: float, verdict: str) -> None:
    (found,) = judge_thresholds(Threshold("max-discrepancy", bound, "gender"), METRICS)  # 0.15 [0.10, 0.20]
    assert (found.subject, found.verdict, found.value, found.ci_high) == ("gender", verdict, 0.15, 0.20)


@pytest.mark.parametrize(("bound", "verdict"), [(0.92, "met"), (0.93, "unclear"), (0.96, "unclear"), (0.97, "missed")])
def test_a_floor_is_met_when_the_whole_interval_reaches_it(bound: float, verdict: str) -> None:
    (found,) = judge_thresholds(Threshold("min-recall", bound), METRICS)  # 0.94 [0.92, 0.96]
    assert (found.subject, found.verdict) == ("all", verdict)


def test_a_bar_without_a_name_is_for_every_axis_of_its_benchmark() -> None:
    found = judge_thresholds(Threshold("max-discrepancy", 0.22), METRICS)
    assert [(each.subject, each.verdict) for each in found] == [("gender", "met"), ("race", "missed")]
    assert found[1].reason == "0.300 [0.250, 0.350] misses 0.22"


def test_what_was_not_measured_or_has_no_interval_says_so_and_does_not_pass() -> None:
    (faceless,) = judge_thresholds(Threshold("max-no-face", 0.5, "neutral"), METRICS)
    assert (faceless.verdict, faceless.value) == ("unmeasured", 0.02)
    assert faceless.reason == "0.020 has no interval: a single prompt says nothing of others"
    neutral, generic = judge_thresholds(Threshold("min-clip", 70), METRICS)
    assert (neutral.subject, neutral.verdict, neutral.reason) == ("neutral", "unmeasured", "not measured: no weights")
    assert (generic.subject, generic.verdict) == ("generic", "met")
    (absent,) = judge_thresholds(Threshold("max-per-prompt", 0.5), METRICS)
    assert absent.reason == "not measured: there is no discrepancy_per_prompt of neutral prompts"
    assert [each.passes(strict=False) for each in (faceless, neutral, generic, absent)] == [False, False, True, False]


def test_strict_lets_nothing_through_that_cannot_be_told() -> None:
    (found,) = judge_thresholds(Threshold("max-discrepancy", 0.15, "gender"), METRICS)
    assert (found.verdict, found.passes(strict=False), found.passes(strict=True)) == ("unclear", True, False)


def test_bars_are_read_from_words() -> None:
    assert parse_threshold("max-discrepancy", "gender=0.2") == Threshold("max-discrepancy", 0.2, "gender")
    assert parse_threshold("min-clip", "80") == Threshold("min-clip", 80.0, None)
    assert str(Threshold("min-recall", 0.95, "race")) == "min-recall race=0.95"
    for text in ("", "gender", "gender=", "=0.2", "nan"):
        with pytest.raises(ConfigError, match=r"--max-discrepancy .* is not a threshold; write --max-discrepancy 0\.2"):
            parse_threshold("max-discrepancy", text)


def test_bars_that_nothing_can_answer_are_refused() -> None:
    known = (["gender"], ["neutral", "specific", "generic"], ["clip_score"])
    check_thresholds([Threshold("max-discrepancy", 0.2, "gender"), Threshold("min-recall", 0.9, "all")], *known)
    with pytest.raises(ConfigError, match=r"there is nothing to check; set a threshold with --max-discrepancy"):
        check_thresholds([], *known)
    with pytest.raises(ConfigError, match=r"--max-discrepancy names 'age'; choose from gender$"):
        check_thresholds([Threshold("max-discrepancy", 0.2, "age")], *known)
    with pytest.raises(ConfigError, match="--min-clip names 'gender'; choose from neutral, specific, generic"):
        check_thresholds([Threshold("min-clip", 80, "gender")], *known)


@pytest.mark.parametrize(
    ("kind", "bound", "told"),
    [
        ("max-no-face", 5.0, r"no_face_share is between 0 and 1; give a threshold in that range, such as 0\.05 for 5%"),
        ("min-recall", 95.0, "recall is between 0 and 1"),
        ("max-discrepancy", -0.1, r"discrepancy_pooled is between 0 and 1\.414; give a threshold in that range$"),
        ("max-per-prompt", float("inf"), "--max-per-prompt inf decides nothing"),
        ("min-clip", float("-inf"), "clip_score is between -100 and 100"),
    ],
)
def test_a_bar_that_no_value_can_miss_or_meet_is_refused(kind: str, bound: float, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_thresholds([Threshold(kind, bound)], ["gender"], ["neutral"], ["clip_score"])


def test_gaps_between_classes_have_thresholds() -> None:
    rows = pd.DataFrame(
        [
            row("no_face_gap", 0.3, 0.2, 0.4, benchmark="specific", axis="gender"),
            row("no_face_gap", 0.1, 0.0, 0.2, benchmark="specific", axis="race"),
            row("no_face_share:male", 0.1, 0.0, 0.2, benchmark="specific", axis="gender"),
            row("no_face_share", 0.1, 0.0, 0.2, benchmark="specific"),
            row("quality_gap:clip_score", 1.0, 0.0, 1.5, benchmark="specific", axis="gender"),
            row("quality_gap:hps", 0.2, 0.0, 3.0, benchmark="specific", axis="gender"),
        ]
    )
    found = [(each.subject, each.verdict) for each in judge_thresholds(Threshold("max-no-face-gap", 0.15), rows)]
    assert found == [("gender", "missed"), ("race", "unclear")]
    found = [(each.subject, each.verdict) for each in judge_thresholds(Threshold("max-quality-gap", 2.0), rows)]
    assert found == [("gender clip_score", "met"), ("gender hps", "unclear")]
    (one,) = judge_thresholds(Threshold("max-quality-gap", 2.0, "hps"), rows)
    assert (one.subject, one.value) == ("gender hps", 0.2)
    # of the classes there are rows of the same name; a threshold is for all of them together
    (whole,) = judge_thresholds(Threshold("max-no-face", 0.3, "specific"), rows)
    assert (whole.subject, whole.verdict) == ("specific", "met")
    (absent,) = judge_thresholds(Threshold("max-quality-gap", 2.0, "fid"), rows)
    assert absent.reason == "not measured: there is no quality_gap of specific prompts"
    with_diversity = pd.DataFrame(
        [*rows.to_dict("records"), row("quality_gap:diversity", 0.1, 0.0, 0.2, benchmark="specific", axis="gender")]
    )
    unnamed = judge_thresholds(Threshold("max-quality-gap", 2.0), with_diversity)
    assert [each.subject for each in unnamed] == [subject for subject, _ in found]
    (named,) = judge_thresholds(Threshold("max-quality-gap", 0.3, "diversity"), with_diversity)
    assert (named.subject, named.verdict) == ("gender diversity", "met")
    known = (["gender"], ["neutral", "specific", "generic"], ["clip_score", "diversity"])
    with pytest.raises(ConfigError, match="3 decides nothing: quality_gap is between 0 and 2"):
        check_thresholds([Threshold("max-quality-gap", 3.0, "diversity")], *known)
    with pytest.raises(ConfigError, match=r"names 'generic'; choose from neutral, specific$"):
        check_thresholds([Threshold("max-no-face", 0.1, "generic")], *known)
    with pytest.raises(ConfigError, match="--max-quality-gap names 'gender'; choose from clip_score"):
        check_thresholds([Threshold("max-quality-gap", 2.0, "gender")], ["gender"], ["specific"], ["clip_score"])
