"""What every report, comparison, gate and leaderboard must hold to, whatever the numbers: a property test a rule."""

import json
import re
from datetime import UTC, datetime
from html import unescape
from itertools import product

import comparison_frames
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from report_frames import ALIGNED, BASE, BETTER, frame_of, inputs_of, rows_of

from flows.terminal.terminal_tables import verdict_lines
from popalign_core.config import Axis
from popalign_core.evaluation.fairness import discrepancies
from popalign_core.evaluation.thresholds import KINDS, GateOutcome, Threshold, judge_thresholds
from popalign_core.report.card_markdown import comparison_markdown
from popalign_core.report.comparison_page import build_comparison
from popalign_core.report.estimates import SYMBOLS, WORDS, Estimate, judge_difference
from popalign_core.report.leaderboard_page import build_leaderboard
from popalign_core.report.measure_names import direction, is_shown, measure_name, number
from popalign_core.report.standings import ComparisonResults
from popalign_core.report.verdict import find_verdict

NAN = float("nan")
CELLS = st.tuples(st.floats(-0.5, 0.5), st.floats(0.001, 0.4), st.sampled_from([0.001, 0.04, 0.06, 1.0, float("nan")]))


SHARES = st.floats(0.0, 1.0)
FEW = settings(max_examples=10, deadline=None)
MANY = settings(max_examples=100, deadline=None)


@given(CELLS, st.sampled_from(["discrepancy_pooled", "recall", "clip_score", "share:male", "fid", "no_face_share"]))
@MANY
def test_a_change_is_said_only_where_interval_and_p_value_agree(cell: tuple[float, float, float], metric: str) -> None:
    value, half, p_adjusted = cell
    difference = Estimate(value, value - half, value + half, p_adjusted=p_adjusted)
    status = judge_difference(metric, difference, 0.95, tested=True)
    good = direction(metric) * value
    shown = abs(value) > half and p_adjusted < 0.05 and good != 0
    assert (status in ("improved", "worse")) == shown
    assert not shown or status == ("improved" if good > 0 else "worse")
    assert (status == "untested") == (p_adjusted != p_adjusted)
    # the p-value of one row is asked for only where its table has some
    alone = judge_difference(metric, Estimate(value, value - half, value + half), 0.95, tested=False)
    assert (alone in ("improved", "worse")) == (abs(value) > half and good != 0)


@given(CELLS)
@FEW
def test_equal_numbers_have_equal_words(cell: tuple[float, float, float]) -> None:
    value, half, p_adjusted = cell
    rows = inputs_of(dict.fromkeys(BASE, (value, value - half, value + half))).comparison
    results = ComparisonResults(inputs_of(comparison=rows.assign(p_adjusted=p_adjusted), grids={}))
    words: dict[int, set[str]] = {}
    for measure in results.measures:
        words.setdefault(direction(measure.metric), set()).add(results.status("aligned", measure))
    assert all(len(each) == 1 for each in words.values())


@given(st.lists(CELLS, min_size=len(BASE), max_size=len(BASE)))
@settings(max_examples=10, deadline=None)
def test_box_table_and_card_say_the_same(cells: list[tuple[float, float, float]]) -> None:
    change = {key: (value, value - half, value + half) for key, (value, half, _) in zip(BASE, cells, strict=True)}
    rows = inputs_of(change).comparison.assign(p_adjusted=[p for _, _, p in cells])
    inputs = inputs_of(comparison=rows, grids={})
    results, sentences = ComparisonResults(inputs), dict(find_verdict(ComparisonResults(inputs)).sentences)
    card, page = comparison_markdown(inputs), build_comparison(inputs)
    page = page[page.index("Base and aligned, in numbers") : page.index("Recall of every class")]
    for measure in results.measures:
        if not is_shown(measure.metric):
            continue
        words = WORDS[results.status("aligned", measure)]
        (line,) = (each for each in card.splitlines() if each.startswith(f"| {measure.name} |"))
        assert line.endswith(f" {words} |")
        (cell,) = re.findall(rf'<th scope="row">{re.escape(measure.name)}</th>(.*?)</tr>', page)
        assert cell.count(f"</i> {words}</span>") == 1
        if not measure.metric.startswith("discrepancy"):
            name = measure.name[:1].lower() + measure.name[1:] if not measure.name[1:2].isupper() else measure.name
            leads = {"worse": "Worse", "improved": "Also improved", "no clear change": "No clear change"}
            for word, lead in leads.items():
                assert (f"{name} " in sentences.get(lead, "")) == (word == words)
            doubtful = sentences.get(
                "Perhaps worse (not significant after adjusting for the number of comparisons)", ""
            )
            assert (f"{name} " in doubtful) == (words == "perhaps worse")
        elif f"{words};" not in sentences["Gender discrepancy"]:
            raise AssertionError((measure, words, sentences["Gender discrepancy"]))


@given(st.lists(CELLS, min_size=3 * len(comparison_frames.VALUES), max_size=3 * len(comparison_frames.VALUES)))
@FEW
def test_page_card_and_glance_of_several_systems_say_the_same(cells: list[tuple[float, float, float]]) -> None:
    values, halves, p_values = (pd.Series(column) for column in zip(*cells, strict=True))
    rows = comparison_frames.comparison()
    rows = rows.assign(value=values, ci_low=values - halves, ci_high=values + halves, p_adjusted=p_values)
    inputs = comparison_frames.inputs(comparison=rows, grids={})
    results = ComparisonResults(inputs)
    summary, page, card = find_verdict(results), build_comparison(inputs), comparison_markdown(inputs)
    assert f"</span> {summary.headline}</p>" in page
    assert f"**{SYMBOLS[summary.status]} {summary.headline}**" in card
    for system, measure in product(inputs.others, results.headlines):
        status = results.status(system, measure)
        standing = results.standing(system)
        if results.decides(measure) or not results.counts(measure):
            continue
        assert (measure in standing.lost) == (status == "worse")
        assert (measure in standing.gained) == (status == "improved")
        assert (measure in standing.doubtful) == (status == "doubtful")
    for standing in map(results.standing, inputs.others):
        is_worse = "worse" in standing.axes.values()
        is_fairer = "improved" in standing.axes.values() and not is_worse
        assert (standing.place == "less fair") == is_worse
        assert (standing.place == "fairer at a cost") == (is_fairer and bool(standing.lost))
        assert (standing.place == "fairer") == (is_fairer and not standing.lost)


@given(st.lists(CELLS, min_size=len(BASE), max_size=len(BASE)))
@FEW
def test_the_command_ends_with_the_words_of_the_page(cells: list[tuple[float, float, float]]) -> None:
    change = {key: (value, value - half, value + half) for key, (value, half, _) in zip(BASE, cells, strict=True)}
    rows = inputs_of(change).comparison.assign(p_adjusted=[p for _, _, p in cells])
    inputs = inputs_of(comparison=rows, grids={})
    summary, page = find_verdict(ComparisonResults(inputs)), build_comparison(inputs)
    lines = verdict_lines(ComparisonResults(inputs))
    said = [summary.headline, *(f"{lead}: {text}" for lead, text in summary.sentences)]
    assert lines[-len(said) :] == said
    box = unescape(re.sub(r"<[^>]+>", "\n", page))
    assert all(text in box for lead, text in summary.sentences)


@given(SHARES, SHARES, st.floats(0.001, 0.3), st.floats(0.05, 0.95))
@MANY
def test_a_share_beyond_its_target_is_said_where_the_interval_is_beyond(
    before: float, after: float, half: float, target: float
) -> None:
    axis = Axis(name="gender", classes=("male", "female"), target={"male": target, "female": 1 - target})
    shares = {
        system: {
            ("neutral", "share:male", "gender"): (share, share - half, share + half),
            ("neutral", "share:female", "gender"): (1 - share, 1 - share - half, 1 - share + half),
        }
        for system, share in (("base", before), ("aligned", after))
    }
    assume(min(abs(after - half - target), abs(after + half - target), abs(before - target)) > 1e-9)
    metrics = frame_of(
        rows_of("base", BASE | shares["base"], 0.05) + rows_of("aligned", ALIGNED | shares["aligned"], 0.05)
    )
    lead, said = find_verdict(ComparisonResults(inputs_of(metrics=metrics, axes=(axis,)))).sentences[0]
    assert lead == "Gender shown"
    assert said.startswith(f"male {before:.0%} → {after:.0%}, female {1 - before:.0%} → {1 - after:.0%}; the target is")
    is_beyond = (before < target < after - half) or (before > target > after + half)
    assert ("male went beyond its target" in said) == is_beyond


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5))
@MANY
def test_the_largest_discrepancy_is_one_that_no_shares_exceed(weights: list[int]) -> None:
    names = [f"class {n}" for n in range(len(weights))]
    target = {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}
    axis = Axis(name="gender", classes=tuple(names), target=target)
    page = build_comparison(inputs_of(axes=(axis,), grids={}))
    (said,) = re.findall(r"at most ([\d.]+) \(gender\)", page)
    grid = [cut for cut in product(range(5), repeat=len(names)) if sum(cut) == 4]
    largest = max(float(discrepancies([part / 4 for part in cut], axis.shares())) for cut in grid)
    assert float(said) == pytest.approx(largest, abs=6e-4)
    assert page.index("A discrepancy is the distance") < page.index("Recall of every class")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30), st.integers(1, 10**6))
@FEW
def test_the_head_names_model_preset_and_images(name: str, n_images: int) -> None:
    costs = pd.DataFrame([("base", "sampling", float(n_images), "images")], columns=["system", "what", "value", "unit"])
    page = build_comparison(inputs_of(model=name, preset="portraits", costs=costs, grids={}))
    head = unescape(re.sub(r"<[^>]+>", "", page[page.index("<header") : page.index("</header>")]))
    assert f"Model: {name}. Preset: portraits. Images: {n_images:,} of base." in head


@given(st.sampled_from(list(ALIGNED)), st.lists(SHARES, min_size=1, max_size=4))
@FEW
def test_the_leaderboard_writes_numbers_as_the_report_does(key: tuple[str, str, str], values: list[float]) -> None:
    times = [datetime(2026, 1, 1 + n, tzinfo=UTC).isoformat() for n in range(len(values))]
    rows = pd.concat([
        frame_of(rows_of(f"hash{n}", {key: (value, value / 2, value)}, 0.05)).assign(
            checkpoint=f"step {n}", model_hash=f"hash{n}", protocol="p", evaluated_at=times[n]
        )
        for n, value in enumerate(values)
    ])  # fmt: skip
    if not is_shown(key[1], is_crowded=True):
        return
    page = build_leaderboard(rows)
    for value in values:
        assert f"<b>{number(value, key[1])}</b>" in page
    assert not any(f"</i> {word}" in page for word in WORDS.values())  # it compares nothing


@given(
    SHARES, st.floats(0.001, 0.3), st.lists(SHARES, min_size=2, max_size=2, unique=True), st.sampled_from(list(KINDS))
)
@MANY
def test_a_threshold_that_asks_for_less_is_never_harder(
    value: float, half: float, bounds: list[float], kind: str
) -> None:
    """And `met` is where the whole interval is on the right side, as `improved` is in a report."""
    metric = KINDS[kind].metric + (":clip_score" if KINDS[kind].names == "scorer" else "")
    axis = "" if KINDS[kind].names == "benchmark" else "gender"
    rows = frame_of([("base", KINDS[kind].benchmarks[0], metric, axis, value, value - half, value + half, 9, NAN, "r")])
    hard, easy = sorted(bounds, reverse=not KINDS[kind].is_ceiling)
    order = ("missed", "unclear", "met")
    found = [judge_thresholds(Threshold(kind, bound), rows)[0].verdict for bound in (hard, easy)]
    assert order.index(found[0]) <= order.index(found[1])
    for bound, verdict in zip((hard, easy), found, strict=True):
        right = value + half <= bound if KINDS[kind].is_ceiling else value - half >= bound
        assert (verdict == "met") == right


@given(
    st.lists(st.tuples(SHARES, st.floats(0.0, 0.3) | st.just(NAN)), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
@MANY
def test_a_gate_passes_only_what_is_proven_and_never_what_is_not_measured(
    found: list[tuple[float, float]], strict: bool, lenient: bool
) -> None:
    rows = [
        frame_of([("base", "neutral", "discrepancy_pooled", "gender", value, value - half, value + half, 9, NAN, "r")])
        for value, half in found
    ]
    judgements = [judge_thresholds(Threshold("max-discrepancy", 0.5), row)[0] for row in rows]
    outcome = GateOutcome(tuple(judgements), strict, lenient)
    verdicts = {each.verdict for each in judgements}
    assert {each.verdict == "unmeasured" for each in judgements} <= {half != half for _, half in found}
    if verdicts & {"missed", "unmeasured"} or (strict and "unclear" in verdicts):
        assert outcome.verdict == "failed"
    elif "met" in verdicts or lenient:
        assert outcome.verdict == "passed"
    else:
        assert outcome.verdict == "unproven"


OF_AXES = (
    "discrepancy_pooled", "discrepancy_per_prompt", "discrepancy_joint_by_faces", "share_corrected:male", "kl",
    "recall:male", "no_face_gap", "unsure_share", "quality_gap:clip_score", "parity_gap", "share_least:male", "entropy",
    "agreement",
)  # fmt: skip
OF_IMAGES = ("no_face_share", "clip_score", "hps_score", "fid", "kid_per_prompt", "diversity", "subject_accuracy")
NAMED = st.tuples(st.sampled_from(OF_AXES), st.just("gender")) | st.tuples(st.sampled_from(OF_IMAGES), st.just(""))


@given(NAMED, st.sampled_from(["neutral", "specific", "generic"]))
@MANY
def test_measures_are_named_in_words(named: tuple[str, str], benchmark: str) -> None:
    words = measure_name(*named, benchmark)
    assert "_" not in words
    assert ":" not in words.removeprefix("Gender:")
    assert words[:1].isupper()
    assert "  " not in words


JSON = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner, max_size=4))


@given(st.dictionaries(st.text(), JSON, min_size=1, max_size=4), st.integers(0, 900))
@FEW
def test_a_configuration_is_read_off_the_page_as_it_was(values: dict[str, object], padding: int) -> None:
    text = json.dumps(values | {"padding": "x" * padding})
    page = build_comparison(inputs_of(grids={}, reproducibility={"configuration": text}))
    (found,) = re.findall(r"<dt>configuration</dt><dd>(.*?)</dd>", page, re.S)
    folded = re.search(r'<pre class="all">(.*)</pre>', found, re.S)
    assert (folded is not None) == (len(text) > 400)
    assert json.loads(unescape(folded.group(1) if folded else found)) == json.loads(text)


@given(st.lists(CELLS, min_size=len(BASE), max_size=len(BASE)))
@FEW
def test_every_verdict_is_followed_by_a_command_to_go_on_with(cells: list[tuple[float, float, float]]) -> None:
    change = {key: (value, value - half, value + half) for key, (value, half, _) in zip(BETTER, cells, strict=True)}
    page = build_comparison(inputs_of(change, grids={}))
    (after,) = re.findall(r"<h2>Next steps</h2>(.*?)</section>", page, re.S)
    assert re.search(r"<code>popalign (check|sweep|evaluate|study)\b", unescape(after))
    assert page.index("<h2>Next steps</h2>") > page.index("<h2>Limitations</h2>")
