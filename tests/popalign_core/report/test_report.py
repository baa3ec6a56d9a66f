import base64
import io
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pages import Page
from PIL import Image
from report_frames import ALIGNED, BASE, BETTER, EACH, POOLED, RECALL, frame_of, inputs_of, rows_of

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.report.charts import curve
from popalign_core.report.comparison_inputs import ComparisonInputs
from popalign_core.report.comparison_page import build_comparison
from popalign_core.report.estimates import ReportedMeasure
from popalign_core.report.image_strips import png_data_uri
from popalign_core.report.measure_names import direction, measure_name, number
from popalign_core.report.standings import ComparisonResults, Summary
from popalign_core.report.verdict import find_verdict

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def _verdict(inputs: ComparisonInputs) -> Summary:
    return find_verdict(ComparisonResults(inputs))


def _sentences(inputs: ComparisonInputs) -> dict[str, str]:
    return dict(_verdict(inputs).sentences)


def test_page_is_complete_well_formed_and_loads_nothing() -> None:
    html = build_comparison(inputs_of())
    reader = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert len(reader.links) == 4
    assert all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_page_says_what_a_release_manager_asks() -> None:
    html = build_comparison(inputs_of())
    text = re.sub(r"<[^>]+>", "", html)
    for expected in (
        "Fairer on gender",
        "all prompts together 0.500 → 0.100 (improved; a fair sampler would show 0.050)",
        "0.400 to 0.600",
        "−0.500 to −0.300",
        "97.0%",
        "no clear change",
        "too few images",
        "2 of 3",
        "popalign run --preset portraits",
        "One seed only.",
        "perceived appearance",
        "makes no claim about real people",
    ):
        assert expected in text, expected


def _renamed(inputs: ComparisonInputs, name: str) -> dict[str, Any]:
    """One of the systems by another name."""
    systems = tuple(EVIL if each == name else each for each in inputs.systems)
    grids = {prompt: dict(zip(systems, sides.values(), strict=True)) for prompt, sides in inputs.grids.items()}
    tables = {table: getattr(inputs, table).replace(name, EVIL) for table in ("metrics", "comparison", "per_prompt")}
    return {"reference": systems[0], "systems": systems, "grids": grids, **tables}


@pytest.mark.parametrize(
    "place", ["title", "reference", "aligned", "prompt", "grid", "reason", "command", "note", "axis", "log"]
)
def test_text_from_outside_is_escaped(place: str) -> None:
    inputs = inputs_of()
    over: dict[str, Any] = {
        "title": {"title": EVIL},
        "reference": _renamed(inputs, "base"),
        "aligned": _renamed(inputs, "aligned"),
        "prompt": {"per_prompt": inputs.per_prompt.assign(text=EVIL, leading=EVIL)},
        "grid": {"grids": {EVIL: inputs.grids["a photo of a nurse"]}},
        "reason": {
            "drops": inputs.drops.assign(reason=EVIL),
            "training_drops": inputs.training_drops.assign(stage=EVIL),
        },
        "command": {"reproducibility": {EVIL: EVIL}},
        "note": {"notes": (EVIL,)},
        "axis": {
            "axes": (Axis(name=EVIL, classes=("male", "female")),),
            "metrics": inputs.metrics.replace("gender", EVIL),
            "comparison": inputs.comparison.replace("gender", EVIL),
            "per_prompt": inputs.per_prompt.replace("gender", EVIL),
        },
        "log": {"training_log": inputs.training_log.assign(name=EVIL)},
    }[place]
    html = build_comparison(inputs_of(**over))
    reader = Page(html)
    assert "script" not in reader.tags
    assert html.count("<img") == 4
    assert "&lt;script&gt;" in html or "&lt;Script&gt;" in html


def test_verdict_follows_intervals_not_values() -> None:
    assert _verdict(inputs_of()).headline == "Fairer on gender"
    unclear = {**BETTER, POOLED: (-0.4, -0.9, 0.1), EACH: (-0.4, -0.9, 0.1)}
    assert (_verdict(inputs_of(unclear)).status, _verdict(inputs_of(unclear)).headline) == (
        "unclear",
        "No clear change in fairness",
    )
    worse = {**BETTER, POOLED: (0.2, 0.1, 0.3)}
    assert (_verdict(inputs_of(worse)).status, _verdict(inputs_of(worse)).headline) == (
        "worse",
        "Less fair on gender",
    )


def test_verdict_names_the_price() -> None:
    costly = {**BETTER, RECALL: (-0.05, -0.08, -0.02)}
    verdict = _verdict(inputs_of(costly))
    assert verdict.headline == "Fairer on gender, at a measurable cost"
    assert dict(verdict.sentences)["Worse"] == "recall of gender −5.0 pts."


def test_direction_of_each_measure() -> None:
    up = dict.fromkeys(BASE, (0.2, 0.1, 0.3))
    results = ComparisonResults(inputs_of(up))
    statuses = {(m.metric, m.axis): results.status("aligned", m) for m in results.measures}
    assert isinstance(results.measures[0], ReportedMeasure)
    assert statuses["discrepancy_pooled", "gender"] == "worse"
    assert statuses["no_face_share", ""] == "worse"
    assert statuses["recall", "gender"] == "improved"
    assert statuses["clip_score", ""] == "improved"


def test_missing_interval_is_said_not_guessed() -> None:
    none = dict.fromkeys(BASE, (-0.4, np.nan, np.nan))
    verdict = _verdict(inputs_of(none))
    assert verdict.status == "unmeasured"
    assert "cannot be judged" in verdict.headline
    assert "no interval" in dict(verdict.sentences)["Gender discrepancy"]
    assert "no interval" in build_comparison(inputs_of(none))


def test_numbers_are_written_as_they_are_read() -> None:
    assert number(0.1234, "discrepancy_pooled") == "0.123"
    assert number(-0.1234, "discrepancy_pooled", signed=True) == "−0.123"
    assert number(0.975, "recall") == "97.5%"
    assert number(-0.021, "recall", signed=True) == "−2.1 pts"
    assert number(-0.00001, "recall", signed=True) == "0.0 pts"
    assert number(30.456, "clip_score") == "30.46"
    assert number(float("nan"), "recall") == "–"
    assert measure_name("recall", "all", "specific") == "Recall of all requested attributes"
    assert measure_name("pick_score", "", "generic") == "Pick score (generic prompts)"


def test_pictures_are_lossless_png_and_large_ones_are_made_smaller() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    uri = png_data_uri(pixels)
    decoded = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(decoded), pixels)
    large = png_data_uri(np.zeros((1024, 512, 3), dtype=np.uint8))
    assert Image.open(io.BytesIO(base64.b64decode(large.partition(",")[2]))).size == (128, 256)


def test_constant_curve_and_no_log() -> None:
    assert "polyline" in curve("loss", [0, 1], [0.5, 0.5])
    assert "<h2>Training</h2>" in build_comparison(inputs_of())
    nothing = pd.DataFrame({"step": [], "name": [], "value": []})
    assert "<h2>Training</h2>" not in build_comparison(inputs_of(training_log=nothing))


def test_every_prompt_has_its_leading_class() -> None:
    html = build_comparison(inputs_of())
    table = html[html.index("All prompts, gender") :]
    text = re.sub(r"<[^>]+>", "", table[: table.index("</table>")])
    assert "a photo of an engineer0.70 99% male, n = 600.10 55% male, n = 60" in text
    assert text.index("engineer") < text.index("nurse")  # the most biased under the base first


def test_inputs_that_do_not_fit_are_refused() -> None:
    inputs = inputs_of()
    with pytest.raises(InputError, match="do not hold 'other'"):
        build_comparison(inputs_of(systems=("base", "other")))
    with pytest.raises(InputError, match="the reference is 'other'"):
        build_comparison(inputs_of(reference="other"))
    with pytest.raises(InputError, match="comparison is empty"):
        build_comparison(inputs_of(comparison=inputs.comparison.head(0)))
    before, after = inputs.grids["a photo of a nurse"].values()
    with pytest.raises(InputError, match=r"has \[1, 2\] images by system"):
        build_comparison(inputs_of(grids={"p": {"base": before, "aligned": after[:1]}}))
    with pytest.raises(InputError, match="uint8"):
        build_comparison(inputs_of(grids={"p": {"base": before / 255, "aligned": after / 255}}))


def _with_p_values(**p_adjusted: float) -> pd.DataFrame:
    rows = inputs_of({**BETTER, RECALL: (-0.05, -0.08, -0.02)}).comparison
    return rows.assign(p_adjusted=rows["metric"].map(p_adjusted), note="")


def test_adjusted_p_values_decide_beside_intervals_and_doubtful_losses_are_told() -> None:
    unsure = _with_p_values(discrepancy_pooled=0.01, discrepancy_per_prompt=0.2, recall=0.3, clip_score=1.0)
    verdict = _verdict(inputs_of(comparison=unsure))
    assert verdict.headline == "Fairer on gender"  # of the two, the pooled one holds
    assert (
        "mean over prompts 0.600 → 0.200 (no clear change; a fair sampler would show 0.050)"
        in dict(verdict.sentences)["Gender discrepancy"]
    )
    sentences = dict(verdict.sentences)
    assert (
        sentences["Perhaps worse (not significant after adjusting for the number of comparisons)"]
        == "recall of gender −5.0 pts."
    )
    assert "Worse" not in sentences


def test_every_number_has_its_p_value_and_note() -> None:
    rows = _with_p_values(discrepancy_pooled=0.0123, recall=0.0004)
    rows.loc[rows["metric"] == "clip_score", "note"] = "seeds differ"
    html = build_comparison(inputs_of(comparison=rows))
    full = html[html.index("All metrics") :]
    marked = re.sub(r"</tr>", "\n", re.sub(r"</td>|</th>", " | ", full[: full.index("</table>")]))
    lines = [line.strip() for line in re.sub(r"<[^>]+>", "", marked).splitlines()]
    cells = {line.removesuffix(" |"): lines[at + 2] for at, line in enumerate(lines) if at + 2 < len(lines)}
    assert "−0.400 −0.500 to −0.300 | 0.012 |" in cells["Gender discrepancy, all prompts together"]
    assert "−5.0 pts −8.0 to −2.0 | &lt; 0.001 |" in cells["Recall of gender"]
    assert cells["CLIP score (generic prompts)"].endswith("| seeds differ |")


def test_what_was_not_measured_is_said_with_its_reason() -> None:
    inputs = inputs_of()
    gone = inputs.metrics["metric"] == "clip_score"
    metrics = inputs.metrics.assign(note="")
    metrics.loc[gone, ["value", "ci_low", "ci_high"]] = np.nan
    metrics.loc[gone, "note"] = "not measured: no weights at clip.safetensors"
    page = inputs_of(metrics=metrics, comparison=inputs.comparison[inputs.comparison["metric"] != "clip_score"])
    assert _sentences(page)["Not measured"] == "CLIP score (generic prompts)."
    text = re.sub(r"<[^>]+>", "", build_comparison(page))
    assert "not measureda" in text
    assert "a no weights at clip.safetensors" in text


def test_costs_and_the_agreement_of_two_classifiers() -> None:
    metrics = inputs_of().metrics
    pair = metrics.head(1).assign(metric="kappa", value=0.75, ci_low=0.7, ci_high=0.8, scorer="one|two")
    costs = pd.DataFrame([("aligned", "training", 750.0, "steps")], columns=["system", "what", "value", "unit"])
    text = re.sub(r"<[^>]+>", "", build_comparison(inputs_of(metrics=pd.concat([metrics, pair]), costs=costs)))
    assert "training (steps)aligned750" in text
    assert "baseone|twogendernot measured" in text
    assert "0.750 0.700 to 0.800" in text


def test_names_and_directions_go_by_whole_names() -> None:
    assert [
        direction(metric) for metric in ("fid", "fidelity", "share:male", "share_corrected:a", "kl_per_prompt")
    ] == [*(-1, 1, 0, 0, -1)]
    assert measure_name("hps-v2.1", "", "neutral") == "HPS-v2.1 (neutral prompts)"
    assert measure_name("kl_per_prompt", "gender", "neutral") == "Gender: KL divergence, mean over prompts"
    assert measure_name("discrepancy_pooled", "age", "age") == "Age discrepancy, all prompts together (age prompts)"
    assert (number(0.1234, "kid"), number(0.1234, "clip_score")) == ("0.123", "0.12")


def test_a_row_without_a_p_value_is_not_judged_beside_rows_that_have_one() -> None:
    """Equal numbers, one corrected for the number of rows and one not: neither is called improved."""
    rows = _with_p_values(discrepancy_pooled=0.2)
    results = ComparisonResults(inputs_of(comparison=rows))
    pooled, each = (ReportedMeasure(*key) for key in (POOLED, EACH))
    assert results.difference("aligned", pooled).low == results.difference("aligned", each).low
    assert [results.status("aligned", measure) for measure in (pooled, each)] == ["unclear", "untested"]
    assert "not tested" in build_comparison(inputs_of(comparison=rows))
    assert _verdict(inputs_of(comparison=rows)).headline == "No clear change in fairness"


def test_the_verdict_leads_with_shares_and_says_who_went_beyond() -> None:
    shares = {
        ("neutral", "share:male", "gender"): (0.3, 0.2, 0.4),
        ("neutral", "share:female", "gender"): (0.7, 0.6, 0.8),
    }
    metrics = frame_of(rows_of("base", BASE, 0.05) + rows_of("aligned", ALIGNED | shares, 0.05))
    lead, said = _verdict(inputs_of(metrics=metrics)).sentences[0]
    assert (lead, said) == (
        "Gender shown",
        "male 85% → 30%, female 15% → 70%; the target is 50% each; male went beyond its target of 50%; "
        "female went beyond its target of 50%.",
    )
    # within the interval it may be chance
    unsure = {key: (value, 0.2, 0.8) for key, (value, _, _) in shares.items()}
    metrics = frame_of(rows_of("base", BASE, 0.05) + rows_of("aligned", ALIGNED | unsure, 0.05))
    assert "beyond" not in _verdict(inputs_of(metrics=metrics)).sentences[0][1]


def test_the_page_says_what_a_discrepancy_is_and_what_comes_next() -> None:
    html = build_comparison(inputs_of(model="some/model", reproducibility={"configuration": "{" + "x" * 900 + "}"}))
    text = re.sub(r"<[^>]+>", "", html)
    assert "0 at the targets, and at most 0.707 (gender)" in text
    assert "Model: some/model." in text
    assert "popalign check MODEL" in text
    assert "<summary>902 characters</summary>" in html
