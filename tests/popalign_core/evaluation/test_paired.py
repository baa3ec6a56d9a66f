"""Differences of systems: permutation tests, Holm, and what cannot be compared."""

import numpy as np
import pandas as pd
import pytest

from popalign_core.config import Axis, EvaluationConfig
from popalign_core.errors import InputError
from popalign_core.evaluation.frames import SystemFrames
from popalign_core.evaluation.measures import Measure, ratio
from popalign_core.evaluation.metrics import per_prompt_table
from popalign_core.evaluation.paired import COMPARISON_COLUMNS, compare_all, compare_systems, holm, permutation_p_values
from popalign_core.report.limits import limits

GENDER = Axis(name="gender", classes=("male", "female"))
CONFIG = EvaluationConfig(n_bootstrap=200)
NAMES = [f"p{number}" for number in range(8)]
PROMPTS = pd.DataFrame(
    [(name, name, "neutral", {}, None) for name in NAMES] + [("apple", "apple", "generic", {}, None)],
    columns=["prompt_id", "text", "kind", "identity", "parent_id"],
)


def frames(name: str, n_men: list[int], clip: float = 30.0, n_images: int = 10) -> SystemFrames:
    """So many men of `n_images` images of each prompt."""
    rows = [(f"{name}-{p}-{i}", p, i, i) for p in NAMES[: len(n_men)] for i in range(n_images)]
    table = pd.DataFrame(rows, columns=["image_id", "prompt_id", "index", "seed"])
    classes = ["male" if i < n else "female" for n in n_men for i in range(n_images)]
    attributes = pd.DataFrame({"image_id": table["image_id"], "axis": "gender", "class": classes})
    scores = pd.DataFrame({"image_id": table["image_id"], "scorer": "clip", "version": "1", "value": clip})
    scores["value"] += table["index"] % 3
    return SystemFrames(name, table, attributes.assign(classifier="r@1", drop_reason=None), scores)


BASE = frames("base", [9, 8, 9, 7, 9, 8, 9, 9])
FAIRER = frames("fairer", [6, 5, 6, 4, 6, 5, 6, 6], clip=29.0)


def row(table: pd.DataFrame, metric: str, system: str = "fairer") -> "pd.Series":
    chosen = table[(table["metric"] == metric) & (table["system"] == system)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_every_prompt_moved_the_same_way() -> None:
    table = compare_systems(PROMPTS, BASE, FAIRER, (GENDER,), CONFIG)
    assert tuple(table.columns) == COMPARISON_COLUMNS
    share = row(table, "share:male")
    assert share["value"] == pytest.approx(-0.3)
    # by the very same share in every prompt, but 80 images say no finer than 1 / 80; t of 8 prompts is 2.365
    assert (share["ci_low"], share["ci_high"]) == pytest.approx((-0.3 - 2.365 / 80, -0.3 + 2.365 / 80), rel=1e-3)
    # all 8 prompts exchanged or none, of 2^8: p = 2 / 256
    assert share["p_value"] == pytest.approx(2 / 256, abs=0.003)
    pooled = row(table, "discrepancy_pooled")
    assert pooled["value"] == pytest.approx(-0.3 * np.sqrt(2))
    assert pooled["ci_low"] <= pooled["value"] <= pooled["ci_high"] < -0.2
    assert pooled["note"] == ""
    assert np.isnan(share["p_adjusted"])
    assert pooled["p_adjusted"] >= pooled["p_value"]
    assert row(table, "clip")["p_adjusted"] < 0.05


def test_equal_systems_have_no_difference() -> None:
    table = compare_systems(PROMPTS, BASE, frames("fairer", [9, 8, 9, 7, 9, 8, 9, 9]), (GENDER,), CONFIG)
    assert (table["value"] == 0).all()
    assert (table["p_value"] == 1).all()
    assert ((table["ci_low"] <= 0) & (table["ci_high"] >= 0)).all()


def test_replicates_that_change_places_are_no_difference() -> None:
    """.1 + .2 + .3 and .2 + .3 + .1 differ by rounding, which is neither better nor worse."""
    shares = np.array([[0.1, 0.2, 0.3], [0.2, 0.3, 0.1]])
    one, other = (
        Measure("m", "", np.stack([s * 8, np.full(3, 8.0)], axis=-1)[:, None].repeat(2, 1), ratio, 8) for s in shares
    )
    assert one.value != other.value
    assert (one.change(other), *one.bounded_change(other, CONFIG)) == (0.0, 0.0, 0.0)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, never falling
    found = holm(np.array([0.02, np.nan, 0.01, 0.04, 0.03]))
    np.testing.assert_allclose(found, [0.06, np.nan, 0.04, 0.06, 0.06])


def test_many_headlines_are_tested_by_more_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 prompts that all moved: p is half of one in all permutations, and after Holm, so many times that."""
    generator, names = np.random.default_rng(0), [f"p{number}" for number in range(24)]
    prompts = pd.DataFrame({"prompt_id": names, "text": names, "kind": "generic", "parent_id": None})
    prompts["identity"] = [{} for _ in names]
    images = pd.DataFrame({"prompt_id": names, "index": 0, "seed": 0})

    def scored(name: str, shift: float) -> SystemFrames:
        own = images.assign(image_id=[f"{name}-{prompt}" for prompt in names])
        scores = own[["image_id"]].assign(scorer="clip", version="1", value=generator.random(24) + shift)
        return SystemFrames(name, own, FAIRER.attributes.head(0), scores)

    monkeypatch.setattr("popalign_core.evaluation.paired.N_PERMUTATIONS", 99)
    systems = [scored(f"s{number}", 5.0) for number in range(20)]
    table = compare_all(prompts, scored("base", 0.0), systems, (GENDER,), CONFIG)
    # 20 headlines: 2,000 permutations; with 99 it would be 20 / 2 / 100 = 0.1
    assert table["p_value"].tolist() == pytest.approx([0.5 / 2000] * 20, rel=1e-3)
    assert table["p_adjusted"].max() == pytest.approx(0.5 / 2000 * 20, rel=1e-3)


def test_holm_is_over_all_systems() -> None:
    second = frames("second", [9, 9, 9, 7, 9, 8, 9, 8])
    one = compare_systems(PROMPTS, BASE, FAIRER, (GENDER,), CONFIG)
    both = compare_all(PROMPTS, BASE, [FAIRER, second], (GENDER,), CONFIG)
    assert list(both["system"].unique()) == ["fairer", "second"]
    assert row(both, "clip")["p_value"] == row(one, "clip")["p_value"]
    assert row(both, "clip")["p_adjusted"] > row(one, "clip")["p_adjusted"]


def test_permutations_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    mine, other = (
        Measure("m", "", np.stack([generator.random((2, 8)), np.ones((2, 8))], axis=-1), ratio, 8) for _ in range(2)
    )
    whole = permutation_p_values([(mine, other)], 0, 999)
    monkeypatch.setattr("popalign_core.evaluation.paired._NUMBERS_AT_ONCE", 100)
    assert permutation_p_values([(mine, other)], 0, 999) == pytest.approx(whole, abs=0.05)
    # exactly: all 256 exchanges
    gaps = (mine.terms - other.terms)[..., 0].mean(axis=0)
    signs = np.array(np.meshgrid(*[[1, -1]] * 8)).reshape(8, -1)
    exact = (np.abs(gaps @ signs) >= abs(gaps.sum()) - 1e-12).mean()  # no ties but the one with all exchanged
    assert whole[0] == pytest.approx(exact, abs=0.03)


def test_other_exchanges_with_an_equal_difference_count_half() -> None:
    # differences 2 1 1 of 3 prompts: |4| 2 of 8 times; so p = 2 / 8. Of 2 1 -1, |2|: |4| 2 times, |2| 4 times and |0| 2
    for gaps, p_value in (((2, 1, 1), 2 / 8), ((2, 1, -1), 2 / 8 + 2 / 8 + 2 / 8 / 2)):
        mine, other = (
            Measure("m", "", np.stack([np.array(part, float), np.ones(3)], axis=-1)[None], ratio, 3)
            for part in (gaps, (0, 0, 0))
        )
        assert permutation_p_values([(mine, other)], 0)[0] == pytest.approx(p_value, abs=0.015)


def test_other_seeds_are_tested_and_noted() -> None:
    moved = SystemFrames("fairer", FAIRER.images.assign(seed=-1), FAIRER.attributes, FAIRER.scores)
    table = compare_systems(PROMPTS, BASE, moved, (GENDER,), CONFIG)
    assert set(table.loc[table["axis"] != "all", "note"]) == {"paired by prompt only: the seeds differ"}
    assert row(table, "share:male")["p_value"] == pytest.approx(2 / 256, abs=0.003)


def test_other_numbers_of_images_are_compared_but_not_tested() -> None:
    table = compare_systems(PROMPTS, BASE, frames("fairer", [5] * 8, n_images=9), (GENDER,), CONFIG)
    assert set(table["note"]) == {"not tested: the numbers of images or replicates differ"}
    assert table["p_value"].isna().all()
    assert row(table, "share:male")["ci_high"] < 0


def test_prompts_of_one_alone_are_left_out_and_counted() -> None:
    table = compare_systems(PROMPTS, BASE, frames("fairer", [6, 5, 6, 4]), (GENDER,), CONFIG)
    assert set(table.loc[table["axis"] != "all", "note"]) == {"on the 4 of 8 prompts of both"}
    assert row(table, "share:male")["value"] == pytest.approx(-0.3)
    assert row(table, "share:male")["n"] == 40


def test_nothing_in_common_is_a_row_not_a_failure() -> None:
    other = SystemFrames(
        "fairer",
        pd.DataFrame({"image_id": ["a"], "prompt_id": ["apple"], "index": [0], "seed": [0]}),
        FAIRER.attributes.head(0),
        pd.DataFrame({"image_id": ["a"], "scorer": ["clip"], "version": ["1"], "value": [1.0]}),
    )
    table = compare_systems(PROMPTS, BASE, other, (GENDER,), CONFIG)
    assert set(table["benchmark"]) == {"neutral", "generic"}
    assert table["value"].isna().all()
    assert (table["n"] == 0).all()
    assert set(table["note"]) == {"not compared: no prompt in common"}


def test_scorers_of_two_versions_are_not_compared() -> None:
    newer = SystemFrames("fairer", FAIRER.images, FAIRER.attributes, FAIRER.scores.assign(version="2"))
    table = compare_systems(PROMPTS, BASE, newer, (GENDER,), CONFIG)
    clip = row(table, "clip")
    assert np.isnan(clip["value"])
    assert clip["note"] == "not compared: fairer has clip@2, base clip@1"
    assert row(table, "share:male")["note"] == ""


def test_a_system_without_faces_is_noted() -> None:
    blind = FAIRER.attributes.assign(**{"class": None, "drop_reason": "no_face"})
    table = compare_systems(
        PROMPTS, BASE, SystemFrames("fairer", FAIRER.images, blind, FAIRER.scores), (GENDER,), CONFIG
    )
    pooled = row(table, "discrepancy_pooled")
    assert (pooled["n"], pooled["note"]) == (0, "not measured: no class was read off any image")
    assert row(table, "no_face_share")["value"] == 1.0
    each = per_prompt_table("fairer", PROMPTS, FAIRER.images, blind, (GENDER,))
    assert each["leading"].tolist() == [""] * 8
    assert each[["discrepancy", "leading_share"]].isna().all(axis=None)


def test_prompts_one_by_one_on_the_axes_of_their_benchmark() -> None:
    named = PROMPTS.assign(benchmark=["couples", "couples", *PROMPTS["kind"][2:]])
    other = Axis(name="couple", classes=("same", "other"))
    read = pd.concat([FAIRER.attributes, FAIRER.attributes.assign(axis="couple", **{"class": "same"})])
    axes = {"couples": ("couple",), "neutral": ("gender",)}
    table = per_prompt_table("fairer", named, FAIRER.images, read, (GENDER, other), axes)
    assert table.groupby("axis")["prompt_id"].apply(list).to_dict() == {"couple": NAMES[:2], "gender": NAMES[2:]}
    apples = pd.DataFrame({"image_id": ["a"], "prompt_id": ["apple"], "index": [0], "seed": [0]})
    assert per_prompt_table("fairer", PROMPTS, apples, read.head(0), (GENDER,)).empty


def test_replicates_change_places_together() -> None:
    several = [
        SystemFrames(
            one.name,
            pd.concat([one.images.assign(image_id=one.images["image_id"] + f"r{r}", replicate=r) for r in (0, 1)]),
            pd.concat([one.attributes.assign(image_id=one.attributes["image_id"] + f"r{r}") for r in (0, 1)]),
            pd.concat([one.scores.assign(image_id=one.scores["image_id"] + f"r{r}") for r in (0, 1)]),
        )
        for one in (BASE, FAIRER)
    ]
    table = compare_systems(PROMPTS, *several, (GENDER,), CONFIG)
    share = row(table, "share:male")
    assert (share["value"], share["n"]) == (pytest.approx(-0.3), 160)
    # twice the images, no prompt more: no more certain
    assert share["p_value"] == pytest.approx(2 / 256, abs=0.003)
    alone = compare_systems(PROMPTS, several[0], FAIRER, (GENDER,), CONFIG)
    assert set(alone["note"]) == {"not tested: the numbers of images or replicates differ"}


def test_different_classifiers_are_refused() -> None:
    reread = SystemFrames("fairer", FAIRER.images, FAIRER.attributes.assign(classifier="b@1"), FAIRER.scores)
    with pytest.raises(InputError, match="different classifiers"):
        compare_systems(PROMPTS, BASE, reread, (GENDER,), CONFIG)


def test_an_infinite_divergence_says_why() -> None:
    men = Axis(name="gender", classes=("male", "female"), target={"male": 1.0, "female": 0.0})
    kl = row(compare_systems(PROMPTS, BASE, FAIRER, (men,), CONFIG), "kl")
    assert (kl["n"], kl["note"]) == (0, "not measured: infinite, as a class was read whose target is 0")
    moved = SystemFrames("fairer", FAIRER.images.assign(seed=-1), FAIRER.attributes, FAIRER.scores)
    kl = row(compare_systems(PROMPTS, BASE, moved, (men,), CONFIG), "kl")
    assert kl["note"].startswith("not measured: infinite, as a class was read whose target is 0; paired by prompt only")


def test_what_repeats_the_only_axis_is_not_counted_again() -> None:
    table = compare_systems(PROMPTS, BASE, FAIRER, (GENDER,), CONFIG)
    tested = table[table["p_adjusted"].notna()].set_index("metric")
    assert list(tested.index) == ["discrepancy_pooled", "discrepancy_per_prompt", "discrepancy_joint", "clip"]
    # all 8 prompts moved in each of three measures, 2 of 256 exchanges: the least p-value is multiplied by 3 and not 4
    assert tested["p_adjusted"].min() == pytest.approx(3 * tested["p_value"].min())
    pooled, joint = (tested.loc[name, ["p_value", "p_adjusted"]].tolist() for name in tested.index[[0, 2]])
    assert joint == pooled
    assert list(tested["note"]) == ["", "", "as of the only axis, and not counted again", ""]
    said = [text for text in limits(table, table) if "Holm" in text]
    assert "for the 3 headline differences" in said[0]


def test_holm_of_what_counts_alone() -> None:
    # .01 x 2, .03 x 1; the second .01 repeats the first
    found = holm(np.array([0.01, 0.03, 0.01, np.nan]), np.array([True, True, False, True]))
    np.testing.assert_allclose(found, [0.02, 0.03, 0.02, np.nan])


def test_recall_of_the_only_axis_asked_for_is_not_counted_again() -> None:
    race = Axis(name="race", classes=("white", "black"))
    prompts = PROMPTS.assign(kind="specific", identity=[{"gender": "male"}] * len(PROMPTS))
    white = [f.attributes.assign(axis="race", **{"class": "white"}) for f in (BASE, FAIRER)]
    both = [
        SystemFrames(f.name, f.images, pd.concat([f.attributes, read]), f.scores)
        for f, read in zip((BASE, FAIRER), white, strict=True)
    ]
    table = compare_systems(prompts, *both, (GENDER, race), CONFIG)
    tested = table[table["p_adjusted"].notna()]
    assert list(zip(tested["metric"], tested["axis"], strict=True)) == [
        *(("recall", "gender"), ("recall", "all"), ("clip", "")),
    ]
    assert tested["p_adjusted"].min() == pytest.approx(2 * tested["p_value"].min())
