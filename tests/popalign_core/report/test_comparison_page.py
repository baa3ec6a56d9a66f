"""The page about several systems: what it says, and that it says it to everybody."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.report.comparison_page import build_comparison
from popalign_core.report.standings import ComparisonResults
from popalign_core.report.verdict import find_verdict
from tests.support.comparison_frames import CLIP, EACH, NAN, POOLED, comparison, inputs, metrics
from tests.support.pages import Page, text_of

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def _table(html: str, caption: str) -> str:
    """The text of the first table after a caption, cells apart."""
    found = html[html.index(caption) :]
    table = found[found.index("<table") : found.index("</table>")]
    return re.sub(r"\s+", " ", re.sub(r"</?t[dhr][^>]*>", " | ", table)).replace("</b>", "").replace("<b>", "")


def test_page_is_complete_well_formed_and_loads_nothing() -> None:
    html = build_comparison(inputs())
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert len(page.links) == 8  # four systems, two pictures
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_verdict_tells_fairer_costly_and_not_told_apart() -> None:
    summary = find_verdict(ComparisonResults(inputs()))
    assert (summary.status, summary.headline) == ("improved", "fair and costly are fairer than base, 1 at a cost")
    assert dict(summary.sentences) == {
        "Fairer, at no significant cost": "fair.",
        "Fairer, at a cost": "costly (worse: CLIP score on neutral prompts −1.00 and recall −12.0 pts).",
        "No significant difference in fairness from base": "same.",
    }


def test_adjusted_p_values_overrule_intervals() -> None:
    unsure = comparison().assign(p_adjusted=0.06)
    summary = find_verdict(ComparisonResults(inputs(comparison=unsure)))
    assert (summary.status, summary.headline) == ("unclear", "No system is shown to be fairer than base")
    without = comparison().assign(p_adjusted=NAN)
    assert (
        find_verdict(ComparisonResults(inputs(comparison=without))).headline
        == "fair and costly are fairer than base, 1 at a cost"
    )


def test_bias_that_only_pooling_hides_is_less_fair() -> None:
    rows = comparison()
    chosen = (rows["system"] == "fair") & (rows["metric"] == EACH[1])
    rows.loc[chosen, ["value", "ci_low", "ci_high"]] = (0.2, 0.1, 0.3)
    assert ComparisonResults(inputs(comparison=rows)).standing("fair").place == "less fair"


def test_a_system_on_other_seeds_is_shown_and_not_judged() -> None:
    rows = comparison()
    page = inputs(comparison=rows[rows["system"] != "same"])
    assert ComparisonResults(page).standing("same").place == "unmeasured"
    sentence = dict(find_verdict(ComparisonResults(page)).sentences)
    assert sentence["Not tested against base: no interval or no common seeds"] == "same."
    assert "0.490" in _table(build_comparison(page), "Discrepancy, of all prompts")


def test_tables_hold_values_intervals_floors_and_marks() -> None:
    table = _table(build_comparison(inputs()), "Discrepancy, of all prompts")
    text = text_of(table)
    assert "0.500 0.460 to 0.540; fair 0.020" in text
    assert "0.100 ✔ fairer 0.060 to 0.140; fair 0.020" in text
    assert "0.490 ≈ unclear 0.450 to 0.530; fair 0.020" in text
    assert "0.200 ✔ fairer 0.160 to 0.240; fair 0.090" in text


def test_what_was_not_measured_says_why_and_is_never_zero() -> None:
    html = build_comparison(inputs())
    quality = html[html.index("Prompts of every kind") : html.index("Differences to base")]
    fair_row = re.search(r'<th scope="row">fair</th>(.*?)</tr>', quality)
    assert fair_row is not None
    assert text_of(fair_row[1]) == "not measureda"
    assert "<sup>a</sup> no weights for PickScore; set evaluation.scorers" in quality
    assert not re.search(r">0\.00<|>nan", html)


def test_pictures_made_elsewhere_are_told_apart() -> None:
    table = comparison()
    at = (table["system"] == "fair") & (table["metric"] == "discrepancy_pooled")
    table.loc[at, "note"] = "on the 1 of 2 prompts of both; paired by prompt only: the seeds differ"
    html = build_comparison(inputs(comparison=table, elsewhere=("fair", "same")))
    assert "The images of fair and same were made elsewhere, with other seeds" in text_of(html)
    first = html[html.index("Prompts that name no identity") : html.index("Prompts that name an identity")]
    marked = "<sup>a</sup> against base: on the 1 of 2 prompts of both; paired by prompt only: the seeds differ"
    assert marked in first
    assert "made elsewhere" not in build_comparison(inputs())


def test_a_partial_set_is_another_mark_in_the_fronts() -> None:
    def marked(note: str, reference: str = "base") -> tuple[list[str], bool]:
        table = comparison()
        at = (table["system"] == "fair") & (table["metric"] == "discrepancy_per_prompt")
        table.loc[at, "note"] = note
        html = build_comparison(inputs(comparison=table, elsewhere=(reference, "fair", "same")))
        part = html[html.index("Fairness and quality") : html.index("Win rates by scorer")]
        found = re.findall(r"<polygon [^>]*><title>([^:<]*):", part)
        return sorted(set(found)), "Diamonds, ◆ and ◇, are external images" in part

    assert marked("on the 1 of 2 prompts of both", "costly") == (["fair"], True)
    assert marked("not compared: no prompt in common", "costly") == (["fair"], True)
    assert marked("on the 1 of 2 prompts of both") == (["base", "fair"], True)
    assert marked("paired by prompt only: the seeds differ") == ([], False)


def test_a_win_rate_whose_p_value_is_large_is_no_preference() -> None:
    def mark(p_value: float) -> str:
        html = build_comparison(inputs(wins=inputs().wins.assign(p_adjusted=p_value)))
        wins = html[html.index("Win rates by scorer") : html.index("Class distribution")]
        row = re.search(r'<th scope="row">fair</th>(.*?)</tr>', wins)  # 65% [55, 75]
        assert row is not None
        return text_of(row[1])

    assert mark(0.01).startswith("65.0% ✔ preferred")
    assert mark(0.2).startswith("65.0% ≈ unclear")


def test_large_costs_are_written_out() -> None:
    costs = [("fair", "images drawn", 12960.0, "images"), ("fair", "time", 0.12345, "s")]
    html = build_comparison(inputs(costs=pd.DataFrame(costs, columns=["system", "what", "value", "unit"])))
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html[html.index("<h2>Cost") : html.index("All metrics")])
    assert cells == ["12,960", "0.1235"]


def test_seeds_scale_and_limits_are_said() -> None:
    text = text_of(build_comparison(inputs(scale=0.25, n_seeds=3)))
    assert "4 systems on the same prompts and seeds (3 seeds each); base is the reference" in text
    assert "Quick look: 25% of the images configured" in text
    assert "come from 3 seeds" in text
    n_rows = int(comparison()["p_adjusted"].notna().sum())
    assert f"adjusted (Holm) for the {n_rows} headline differences" in text
    assert "No interval here covers them." in text
    assert "quick look" not in text_of(build_comparison(inputs()))


def test_limits_know_of_rows_corrected_for_classifier_error() -> None:
    rows = metrics()
    corrected = rows[rows["metric"] == POOLED[1]].assign(metric="discrepancy_corrected")
    text = text_of(build_comparison(inputs(metrics=pd.concat([rows, corrected], ignore_index=True))))
    assert "their intervals include the uncertainty of these rates" in text
    assert "No interval here covers them." not in text
    assert "Gender, all prompts, corrected for classifier error and missed faces" in text


def test_notes_of_replicates_and_two_classifiers_are_shown() -> None:
    rows = metrics()
    rows.loc[0, "note"] = "seeds: 0.49 0.51"
    pair = rows.head(2).assign(metric=["agreement", "kappa"], value=[0.9, 0.8], scorer="one|two", note="")
    html = build_comparison(inputs(metrics=pd.concat([rows, pair], ignore_index=True)))
    assert "seeds: 0.49 0.51" in html
    table = text_of(_table(html, "Classifier agreement"))
    assert "base | | one|two | | gender | | 90.0%" in table
    assert "0.800" in table


def test_further_parts_hold_their_numbers() -> None:
    html = build_comparison(inputs())
    wins = text_of(_table(html, "Win rates by scorer"))
    assert "65.0% ✔ preferred 55.0 to 75.0; of 100, ties 10; p = 0.012" in wins
    assert "30.0% ✖ not preferred" in wins
    assert "50.0% ≈ unclear" in wins
    text = text_of(html)
    assert "adjusted for the 3 win rates tested here (Holm)" in text
    for expected in ("3 of 100", "no face", "training (steps)", "750", "Demonstration only.", "popalign compare base"):
        assert expected in text, expected
    full = text_of(_table(html, "All metrics of all systems"))
    assert "Gender: KL divergence" in full
    assert "fair | | 0.100 0.060 to 0.140 | | 0.020 | | 100 | | −0.400 −0.440 to −0.360 | | 0.002" in full


def test_marks_do_not_need_colour() -> None:
    html = build_comparison(inputs())
    for symbol, word in (("✔", "fairer"), ("✖", "worse"), ("≈", "unclear")):
        assert f'<i aria-hidden="true">{symbol}</i> {word}</span>' in html


@pytest.mark.parametrize("place", ["title", "system", "grid", "prompt", "reason", "cost", "note", "axis", "scorer"])
def test_text_from_outside_is_escaped(place: str) -> None:
    page = inputs()
    renamed = {
        name: getattr(page, name).replace("same", EVIL)
        for name in ("metrics", "comparison", "per_prompt", "wins", "drops", "costs")
    }
    over: dict[str, Any] = {
        "title": {"title": EVIL},
        "system": renamed | {"systems": ("base", "fair", "costly", EVIL)},
        "grid": {"grids": {EVIL: page.grids["a photo of a nurse"]}},
        "prompt": {"per_prompt": page.per_prompt.assign(text=EVIL)},
        "reason": {"drops": page.drops.assign(reason=EVIL)},
        "cost": {"costs": page.costs.assign(what=EVIL, unit=EVIL)},
        "note": {"notes": (EVIL,), "reproducibility": {EVIL: EVIL}, "metrics": page.metrics.assign(note=EVIL)},
        "axis": {
            "axes": (Axis(name=EVIL, classes=("male", "female")),),
            **{name: getattr(page, name).replace("gender", EVIL) for name in ("metrics", "comparison", "per_prompt")},
        },
        "scorer": {"wins": page.wins.assign(scorer=EVIL, version=EVIL, benchmark=EVIL)},
    }[place]
    html = build_comparison(replace(page, **over))
    tags = Page(html).tags
    assert "script" not in tags
    assert tags.count("img") == (6 if place == "system" else 8)
    assert "&lt;script&gt;" in html.lower()


def test_inputs_that_do_not_fit_are_refused() -> None:
    page = inputs()
    with pytest.raises(InputError, match="the reference is 'other'"):
        build_comparison(replace(page, reference="other"))
    with pytest.raises(InputError, match="do not hold 'new'; evaluate it first"):
        build_comparison(replace(page, systems=("base", "new")))
    with pytest.raises(InputError, match="comparison is with \\['fair'\\], not with 'base'"):
        build_comparison(replace(page, comparison=page.comparison.assign(reference="fair")))
    before = page.grids["a photo of a nurse"]["base"]
    with pytest.raises(InputError, match="\\[1, 2\\] images by system"):
        build_comparison(replace(page, grids={"p": {"base": before, "fair": before[:1]}}))
    two = page.metrics.copy()
    two.loc[(two["metric"] == CLIP[1]) & (two["system"] == "fair"), "scorer"] = "clip_score@2"
    with pytest.raises(InputError, match=r"'CLIP score \(neutral prompts\)' was measured by \['clip_score@1', "):
        build_comparison(replace(page, metrics=two))


def test_large_pictures_are_made_small_where_there_are_many() -> None:
    page = inputs()
    large = np.zeros((1, 512, 512, 3), dtype=np.uint8)
    html = build_comparison(replace(page, grids={"p": dict.fromkeys(page.systems, large)}))
    assert html.count('width="512" height="512"') == 4
    assert len(html) < 200_000


def test_a_loss_that_only_the_adjusting_makes_unsure_is_told() -> None:
    rows = comparison()
    chosen = (rows["system"] == "costly") & (rows["metric"].isin(["recall", "clip_score"]))
    rows.loc[chosen, "p_adjusted"] = 0.2
    results = ComparisonResults(inputs(comparison=rows))
    assert (results.standing("costly").place, results.standing("costly").lost) == ("fairer", ())
    sentence = dict(find_verdict(results).sentences)["Fairer, at no significant cost"]
    assert sentence == "fair; costly (perhaps worse: CLIP score on neutral prompts −1.00 and recall −12.0 pts)."


def test_an_axis_of_its_own_benchmark_is_judged_there_and_one_without_is_left_out() -> None:
    axes = (*inputs().axes, Axis(name="age", classes=("young", "old")), Axis(name="race", classes=("a", "b")))
    tables = {}
    for name, table in (("metrics", metrics()), ("comparison", comparison())):
        aged = table[table["metric"].str.startswith("discrepancy")].assign(benchmark="age", axis="age")
        tables[name] = pd.concat([table, aged], ignore_index=True)
    results = ComparisonResults(inputs(axes=axes, **tables))
    assert results.benchmarks == {"gender": "neutral", "age": "age"}
    assert results.standing("fair").axes == {"gender": "improved", "age": "improved"}
    html = build_comparison(results.inputs)
    assert "Age, mean" in _table(html, "Prompts “age”")
    assert "Race fairness" not in html


def test_of_a_lost_recall_the_whole_is_named_and_not_its_parts() -> None:
    tables = {}
    for name, table in (("metrics", metrics()), ("comparison", comparison())):
        part = table[table["metric"] == "recall"].assign(axis="gender")
        tables[name] = pd.concat([table, part], ignore_index=True)
    sentence = dict(find_verdict(ComparisonResults(inputs(**tables))).sentences)["Fairer, at a cost"]
    assert sentence == "costly (worse: CLIP score on neutral prompts −1.00 and recall −12.0 pts)."


def test_a_distance_from_the_reference_has_none_of_its_own() -> None:
    rows = metrics()
    far = rows[(rows["metric"] == "clip_score") & (rows["system"] != "base")]
    far = far.assign(metric="cmmd", value=0.01, ci_low=0.0, ci_high=0.02, floor=0.3, scorer="clip@1")
    html = build_comparison(inputs(metrics=pd.concat([rows, far], ignore_index=True)))
    quality = _table(html, "<h3>Quality")
    assert text_of(quality).count("0.010 0.000 to 0.020; if equal 0.300") == 3
    assert "it is the distance from this system&#x27;s images" in html
    assert "Against CMMD" not in html
