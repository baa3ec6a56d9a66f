import resource
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from popalign_core.config import Axis, EvaluationConfig
from popalign_core.errors import InputError
from popalign_core.evaluation.fairness import discrepancy_floor
from popalign_core.evaluation.metrics import (
    COLUMNS,
    SystemFrames,
    compare_systems,
    compute_metrics,
    per_prompt_table,
    with_absent_rows,
)

GENDER = Axis(name="gender", classes=("male", "female"))
RACE = Axis(name="race", classes=("white", "black", "asian"))
CONFIG = EvaluationConfig(n_bootstrap=300)
NO_SCORES = pd.DataFrame({"image_id": [], "scorer": [], "version": [], "value": []})


def _prompt(prompt_id: str, kind: str, identity: dict[str, str] | None = None, parent: str | None = None) -> Any:
    return {
        "prompt_id": prompt_id,
        "text": f"a photo of {prompt_id}",
        "subject": prompt_id,
        "kind": kind,
        "split": "eval",
        "identity": identity or {},
        "parent_id": parent,
        "template": "a photo of {}",
        "source": "test",
    }


def _images(system: str, sizes: dict[str, int]) -> pd.DataFrame:
    rows = [(f"{system}-{prompt}-{i}", prompt, i, 100 + i) for prompt, n in sizes.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["image_id", "prompt_id", "index", "seed"])


def _attributes(images: pd.DataFrame, read: dict[str, list[tuple[str, ...] | str]], axes: Any) -> pd.DataFrame:
    """`read`: prompt -> one class a axis for each image, or the drop reason."""
    rows = []
    for image in images.itertuples():
        if image.prompt_id not in read:
            continue
        answer = read[image.prompt_id][image.index]
        for number, axis in enumerate(axes):
            dropped = isinstance(answer, str)
            label, reason = (None, answer) if dropped else (answer[number], None)
            rows.append((image.image_id, axis.name, label, reason, "reader@1"))
    return pd.DataFrame(rows, columns=["image_id", "axis", "class", "drop_reason", "classifier"])


def _scores(images: pd.DataFrame, value: float, scorer: str = "clip_score") -> pd.DataFrame:
    values = value + images["index"].to_numpy() % 2
    return pd.DataFrame({"image_id": images["image_id"], "scorer": scorer, "version": "v1", "value": values})


def _value(metrics: pd.DataFrame, benchmark: str, metric: str, axis: str = "") -> pd.Series:
    chosen = metrics[(metrics["benchmark"] == benchmark) & (metrics["metric"] == metric) & (metrics["axis"] == axis)]
    assert len(chosen) == 1
    return chosen.iloc[0]


PROMPTS = pd.DataFrame(
    [
        _prompt("nurse", "neutral"),
        _prompt("engineer", "neutral"),
        _prompt("male nurse", "specific", {"gender": "male"}, "nurse"),
        _prompt("female engineer", "specific", {"gender": "female"}, "engineer"),
        _prompt("apple", "generic"),
        _prompt("chair", "generic"),
        _prompt("unused", "neutral"),
    ]
)
SIZES = {"nurse": 100, "engineer": 100, "male nurse": 4, "female engineer": 4, "apple": 2, "chair": 2}
BIASED: dict[str, list[Any]] = {
    "nurse": [("male",)] * 5 + [("female",)] * 95,
    "engineer": [("male",)] * 95 + [("female",)] * 5,
    "male nurse": [("male",), ("male",), ("female",), "no_face"],
    "female engineer": [("female",)] * 4,
}
FAIR = {**BIASED, "nurse": [("male",), ("female",)] * 50, "engineer": [("male",), ("female",)] * 50}


def _frames(name: str, read: dict[str, list[Any]], clip: float = 30.0) -> SystemFrames:
    images = _images(name, SIZES)
    return SystemFrames(name, images, _attributes(images, read, [GENDER]), _scores(images, clip))


def _metrics(frames: SystemFrames, axes: Any = (GENDER,), **change: Any) -> pd.DataFrame:
    tables = {name: change.pop(name) for name in ("images", "attributes", "scores") if name in change}
    prompts = change.pop("prompts", PROMPTS)
    return compute_metrics(prompts, replace(frames, **tables), axes=axes, config=CONFIG, **change)


def test_nurse_and_engineer_pool_to_zero_but_not_per_prompt() -> None:
    metrics = _metrics(_frames("base", BIASED))
    assert tuple(metrics.columns) == COLUMNS
    pooled = _value(metrics, "neutral", "discrepancy_pooled", "gender")
    assert pooled["value"] == 0.0
    assert pooled["floor"] == pytest.approx(discrepancy_floor(200, 2))
    assert pooled["n"] == 200
    assert pooled["scorer"] == "reader@1"
    each = _value(metrics, "neutral", "discrepancy_per_prompt", "gender")
    assert each["value"] == pytest.approx(0.636, abs=5e-4)
    assert each["floor"] == pytest.approx(discrepancy_floor(100, 2))
    assert each["ci_low"] <= each["value"] <= each["ci_high"]
    assert _value(metrics, "neutral", "discrepancy_worst10", "gender")["value"] == pytest.approx(each["value"])
    assert _value(metrics, "neutral", "discrepancy_joint", "all")["value"] == 0.0
    # D^2 = 0, less the variance of both shares between two prompts at .05 and .95: 2 x .45^2
    assert _value(metrics, "neutral", "discrepancy_unbiased", "gender")["value"] == pytest.approx(-2 * 0.45**2)
    assert _value(metrics, "neutral", "share:male", "gender")["value"] == 0.5
    assert _value(metrics, "neutral", "no_face_share")["value"] == 0.0


def test_specific_prompts_count_a_missing_face_as_a_miss() -> None:
    metrics = _metrics(_frames("base", BIASED))
    assert _value(metrics, "specific", "recall", "gender")["value"] == pytest.approx(6 / 8)
    assert _value(metrics, "specific", "recall:male", "gender")["value"] == pytest.approx(2 / 4)
    assert _value(metrics, "specific", "recall:female", "gender")["value"] == 1.0
    assert _value(metrics, "specific", "recall", "all")["n"] == 8
    assert _value(metrics, "specific", "no_face_share")["value"] == pytest.approx(1 / 8)


def test_the_share_of_right_objects_has_a_shares_interval() -> None:
    frames = _frames("base", BIASED)
    generic = frames.images[frames.images["prompt_id"].isin(["apple", "chair"])]

    def accuracy(right: list[float]) -> pd.Series:
        scores = _scores(generic, 0.0, "subject_accuracy").assign(value=right)
        return _value(_metrics(frames, scores=scores), "generic", "subject_accuracy")

    every = accuracy([1.0, 1.0, 1.0, 1.0])
    # Wilson's at 4 images and Student's t of two prompts, 12.706: 1 / (1 + t^2 / 4)
    assert (every["value"], every["ci_high"]) == (1.0, 1.0)
    assert every["ci_low"] == pytest.approx(1 / (1 + 12.706**2 / 4), abs=1e-4)
    some = accuracy([1.0, 1.0, 1.0, 0.0])
    assert some["value"] == 0.75
    assert 0 < some["ci_low"] < 0.75 < some["ci_high"] <= 1


@pytest.mark.parametrize(
    ("unit", "values", "ends"),
    [
        ("100 x cosine", [99.0, 99.0, -50.0, -50.0], (-100.0, 100.0)),
        ("1 - cosine", [1.0, 1.0, 0.1, 0.1], (0.0, 2.0)),
        ("standard deviations", [99.0, 99.0, -50.0, -50.0], (24.5 - 12.7062 * 74.5, 24.5 + 12.7062 * 74.5)),
    ],
)
def test_two_prompts_leave_a_score_within_its_unit(unit: str, values: list[float], ends: tuple[float, float]) -> None:
    frames = _frames("base", BIASED)
    generic = frames.images[frames.images["prompt_id"].isin(["apple", "chair"])]
    scores = _scores(generic, 0.0, "clip").assign(value=values, unit=unit)
    row = _value(_metrics(frames, scores=scores), "generic", "clip")
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(ends, abs=0.01)
    other = SystemFrames("other", frames.images, frames.attributes, scores.assign(value=scores["value"][::-1].values))
    mine = SystemFrames("base", frames.images, frames.attributes, scores)
    change = _value(compare_systems(PROMPTS, mine, other, (GENDER,), CONFIG), "generic", "clip")
    width = ends[1] - ends[0]
    assert -width <= change["ci_low"] < change["value"] < change["ci_high"] <= width or unit == "standard deviations"


def test_what_one_system_lacks_is_a_row_with_the_reason() -> None:
    whole, part = _metrics(_frames("base", BIASED)), _metrics(_frames("part", BIASED))
    part = part[(part["benchmark"] != "specific") & (part["metric"] != "clip_score")]
    distance = part.iloc[:1].assign(metric="cmmd", axis="")  # of every system but the reference
    both = with_absent_rows(pd.concat([whole, part, distance], ignore_index=True))
    mine = both[both["system"] == "part"]
    assert set(zip(mine["benchmark"], mine["metric"], mine["axis"], strict=True)) == {
        *zip(whole["benchmark"], whole["metric"], whole["axis"], strict=True),
        ("neutral", "cmmd", ""),
    }
    assert len(both) == 2 * len(whole) + 1
    recall, clip = _value(mine, "specific", "recall", "gender"), _value(mine, "neutral", "clip_score")
    assert (np.isnan(recall["value"]), recall["n"]) == (True, 0)
    assert recall["note"] == "not measured: there is no image of these prompts"
    assert clip["note"] == "not measured: there is no score"
    pd.testing.assert_frame_equal(with_absent_rows(whole), whole)


def test_scores_are_averaged_by_benchmark() -> None:
    frames = _frames("base", BIASED)
    generic = frames.images[frames.images["prompt_id"].isin(["apple", "chair"])]
    scores = pd.concat([frames.scores, _scores(generic, 0.0, "subject_accuracy")])
    metrics = _metrics(frames, scores=scores)
    for benchmark in ("neutral", "specific", "generic"):
        row = _value(metrics, benchmark, "clip_score")
        assert row["value"] == pytest.approx(30.5)
        assert row["scorer"] == "clip_score@v1"
        assert np.isnan(row["floor"])
    assert _value(metrics, "generic", "subject_accuracy")["value"] == pytest.approx(0.5)
    assert "subject_accuracy" not in set(metrics.loc[metrics["benchmark"] == "neutral", "metric"])


def test_joint_of_two_axes_sees_what_each_hides() -> None:
    # Every man white, every woman asian: gender is fair; race is (.5, 0, .5); joint is 2 of 6 cells.
    prompts = PROMPTS[PROMPTS["prompt_id"].isin(["nurse", "engineer"])]
    images = _images("base", {"nurse": 4, "engineer": 4})
    read: dict[str, list[Any]] = {p: [("male", "white"), ("female", "asian")] * 2 for p in ("nurse", "engineer")}
    axes = (GENDER, RACE)
    metrics = compute_metrics(
        prompts, SystemFrames("base", images, _attributes(images, read, axes), NO_SCORES), axes, CONFIG
    )
    assert _value(metrics, "neutral", "discrepancy_pooled", "gender")["value"] == 0.0
    assert _value(metrics, "neutral", "discrepancy_pooled", "race")["value"] == pytest.approx(np.sqrt(1 / 6))
    assert _value(metrics, "neutral", "discrepancy_joint", "all")["value"] == pytest.approx(np.sqrt(1 / 2 - 1 / 6))
    assert _value(metrics, "neutral", "discrepancy_joint", "all")["floor"] == pytest.approx(discrepancy_floor(8, 6))


def test_dropped_faces_leave_the_shares_and_are_counted() -> None:
    read = {**BIASED, "nurse": ["no_face"] * 40 + ["unsure"] * 10 + [("female",)] * 50}
    metrics = _metrics(_frames("base", read))
    assert _value(metrics, "neutral", "no_face_share")["value"] == pytest.approx(40 / 200)
    assert _value(metrics, "neutral", "discrepancy_pooled", "gender")["n"] == 150
    # a prompt weighs its 100 images, of which all or 50 were read
    assert _value(metrics, "neutral", "share:female", "gender")["value"] == pytest.approx((50 / 50 + 5 / 100) / 2)
    assert _value(metrics, "neutral", "share_by_faces:female", "gender")["value"] == pytest.approx(55 / 150)


def test_target_is_what_counts_as_fair() -> None:
    axis = Axis(name="gender", classes=("male", "female"), target={"male": 0.05, "female": 0.95})
    table = per_prompt_table("base", PROMPTS, *_tables(_frames("base", BIASED)), (axis,))
    by_prompt = table.set_index("prompt_id")["discrepancy"]
    assert by_prompt["nurse"] == pytest.approx(0.0)
    assert by_prompt["engineer"] == pytest.approx(0.9 * np.sqrt(2))


def test_comparison_is_the_difference_with_its_own_interval() -> None:
    base, aligned = _frames("base", BIASED), _frames("aligned", FAIR, clip=29.0)
    change = compare_systems(PROMPTS, base, aligned, (GENDER,), CONFIG)
    assert set(zip(change["system"], change["reference"], strict=True)) == {("aligned", "base")}
    row = _value(change, "neutral", "discrepancy_per_prompt", "gender")
    assert row["value"] == pytest.approx(-0.6364, abs=1e-4)
    # both prompts changed by as much; of two prompts either may be exchanged: p = (1 + half of all) / (1 + all)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((-0.6364, -0.6364), abs=1e-4)
    assert row["p_value"] == pytest.approx(0.5, abs=0.02)
    assert np.isnan(row["floor"])
    # Every image lost exactly one point: paired, that is certain, though the scores themselves are not.
    clip = _value(change, "generic", "clip_score")
    assert (clip["value"], clip["ci_low"], clip["ci_high"]) == pytest.approx((-1.0, -1.0, -1.0))
    same = _value(change, "specific", "recall", "gender")
    assert same["value"] == 0.0
    # shares are known no finer than to an image: t of two prompts, 12.71, over all images
    half = min(12.71 / same["n"], 1.0)
    assert (same["ci_low"], same["ci_high"]) == pytest.approx((-half, half), rel=1e-3)
    both = [_metrics(frames) for frames in (base, aligned)]
    keys = ["benchmark", "metric", "axis"]
    joined = both[0].merge(both[1], on=keys, suffixes=("_0", "_1")).merge(change, on=keys)
    assert len(joined) == len(change) == len(both[0])
    np.testing.assert_allclose(joined["value"], joined["value_1"] - joined["value_0"], atol=1e-12, equal_nan=True)


def test_same_input_same_table() -> None:
    frames = _frames("base", BIASED)
    pd.testing.assert_frame_equal(_metrics(frames), _metrics(frames))


def test_order_of_rows_changes_nothing() -> None:
    frames = _frames("base", BIASED)
    shuffled = {
        name: getattr(frames, name).sample(frac=1, random_state=3) for name in ("images", "attributes", "scores")
    }
    pd.testing.assert_frame_equal(_metrics(frames), _metrics(frames, **shuffled))


def test_one_prompt_has_no_interval() -> None:
    frames = _frames("base", BIASED)
    images = frames.images[frames.images["prompt_id"].isin(["nurse", "apple"])]
    metrics = _metrics(frames, images=images)
    assert metrics["ci_low"].isna().all()
    assert set(metrics["note"]) == {"no interval: all images are of one prompt"}
    assert _value(metrics, "neutral", "discrepancy_pooled", "gender")["value"] == pytest.approx(0.6364, abs=1e-4)


def test_specific_prompts_of_one_occupation_are_one_cluster() -> None:
    frames = _frames("base", BIASED)
    images = frames.images[frames.images["prompt_id"].isin(["male nurse"])]
    assert _metrics(frames, images=images)["ci_low"].isna().all()


def test_per_prompt_table_names_the_leading_class() -> None:
    read = {**BIASED, "nurse": ["no_face"] * 100}
    table = per_prompt_table("base", PROMPTS, *_tables(_frames("base", read)), (GENDER,)).set_index("prompt_id")
    engineer = table.loc["engineer"]
    assert (engineer["leading"], engineer["leading_share"], engineer["n"]) == ("male", 0.95, 100)
    assert engineer["text"] == "a photo of engineer"
    assert np.isnan(table.loc["nurse", "discrepancy"])
    assert (table.loc["nurse", "n"], table.loc["nurse", "n_images"]) == (0, 100)


def _tables(frames: SystemFrames) -> tuple[pd.DataFrame, pd.DataFrame]:
    return frames.images, frames.attributes


def test_bad_tables_are_refused_with_the_reason() -> None:
    frames = _frames("base", BIASED)
    kept = ~frames.attributes["image_id"].str.startswith("base-male nurse")
    with pytest.raises(InputError, match="4 images have no row in the attributes"):
        _metrics(frames, attributes=frames.attributes[kept])
    with pytest.raises(InputError, match="not among the prompts"):
        _metrics(frames, images=frames.images.assign(prompt_id="gone"))
    with pytest.raises(InputError, match="twice"):
        _metrics(frames, images=pd.concat([frames.images, frames.images.head(1)]))
    with pytest.raises(InputError, match="no class 'robot'"):
        _metrics(frames, attributes=frames.attributes.assign(**{"class": "robot"}))
    mixed = pd.concat([frames.attributes, frames.attributes.head(1).assign(classifier="other@2")])
    with pytest.raises(InputError, match="several classifiers"):
        _metrics(frames, attributes=mixed)
    with pytest.raises(InputError, match="two rows for axis 'gender'"):
        _metrics(frames, attributes=pd.concat([frames.attributes, frames.attributes.head(1)]))
    with pytest.raises(InputError, match="no image to evaluate"):
        _metrics(frames, images=frames.images.head(0), scores=NO_SCORES)


def test_bad_scores_are_refused_with_the_reason() -> None:
    frames = _frames("base", BIASED)
    with pytest.raises(InputError, match="no finite score for 1 of 200"):
        _metrics(frames, scores=frames.scores.iloc[1:])
    with pytest.raises(InputError, match="no finite score"):
        _metrics(frames, scores=frames.scores.assign(value=np.nan))
    with pytest.raises(InputError, match="several versions"):
        _metrics(frames, scores=pd.concat([frames.scores.iloc[1:], frames.scores.iloc[:1].assign(version="v2")]))


def test_systems_without_a_face_are_rows_not_failures() -> None:
    metrics = _metrics(_frames("base", {**BIASED, "nurse": ["no_face"] * 100, "engineer": ["no_face"] * 100}))
    neutral = metrics[(metrics["benchmark"] == "neutral") & (metrics["scorer"] == "reader@1")].set_index("metric")
    assert neutral.loc["no_face_share", "value"] == 1.0
    # whatever the images show, it is between nothing and all
    assert neutral.loc[["share_least:male", "share_most:male"], "value"].tolist() == [0.0, 1.0]
    others = neutral[~neutral.index.str.contains("no_face_share|share_least|share_most")]
    assert others["value"].isna().all()
    assert (others["n"] == 0).all()
    assert set(others["note"]) == {"not measured: no class was read off any image"}
    assert others[["ci_low", "ci_high", "floor"]].isna().all(axis=None)
    # the rest of the table is as ever
    assert _value(metrics, "specific", "recall", "gender")["value"] == pytest.approx(6 / 8)


def test_classes_that_no_prompt_asks_for_are_rows_not_measured() -> None:
    frames = _frames("base", BIASED)
    metrics = _metrics(frames, images=frames.images[frames.images["prompt_id"] != "male nurse"])
    row = _value(metrics, "specific", "recall:male", "gender")
    assert np.isnan(row["value"])
    assert (row["n"], row["note"]) == (0, "not measured: no prompt asks for male")


def test_further_measures_by_hand() -> None:
    read = {**BIASED, "nurse": [("male",)] * 60 + [("female",)] * 40, "engineer": [("male",)] * 100}
    metrics = _metrics(_frames("base", read))
    # 160 men of 200: KL to (.5, .5) is ln 2 - H(.8), H(.8) = .5004
    for metric, value in {"kl": 0.1927, "entropy": 0.7219, "parity_gap": 0.6, "bias": 0.6}.items():
        assert _value(metrics, "neutral", metric, "gender")["value"] == pytest.approx(value, abs=1e-4)
    # prompts at .6 and 1: KL .0201 and .6931, gap .2 and 1
    for metric, value in {"kl": 0.3566, "entropy": 0.4855, "parity_gap": 0.6, "bias": 0.6}.items():
        assert _value(metrics, "neutral", f"{metric}_per_prompt", "gender")["value"] == pytest.approx(value, abs=1e-4)


def test_a_class_whose_target_is_0_has_no_finite_kl() -> None:
    axis = Axis(name="gender", classes=("male", "female"), target={"male": 1.0})
    row = _value(_metrics(_frames("base", BIASED), axes=(axis,)), "neutral", "kl", "gender")
    assert np.isnan(row["value"])
    assert row["note"] == "not measured: infinite, as a class was read whose target is 0"


def test_a_replicate_that_shows_faces_of_one_prompt_has_no_interval() -> None:
    """Without that prompt the replicate would show nothing; it was an error in the middle of a comparison."""
    parts = []
    for replicate, hidden in enumerate((0, 1)):
        read = {**BIASED, "nurse": ["no_face"] * 100} if hidden else BIASED
        parts.append((replicate, _frames(f"seed{replicate}", read)))
    images = pd.concat([frames.images.assign(replicate=number) for number, frames in parts], ignore_index=True)
    attributes = pd.concat([frames.attributes for _, frames in parts], ignore_index=True)
    metrics = _metrics(SystemFrames("base", images, attributes, NO_SCORES))
    for metric in ("discrepancy_pooled", "share:female", "kl", "discrepancy_per_prompt", "discrepancy_unbiased"):
        found = _value(metrics, "neutral", metric, "gender")
        assert np.isfinite(found["value"]), metric
        assert np.isnan(found[["ci_low", "ci_high"]].astype(float)).all(), metric
        assert found["note"].startswith("no interval"), metric


def test_replicates_are_measured_apart_and_averaged() -> None:
    """All men under one training seed and all women under another is not fair."""
    frames = [
        _frames(name, {**BIASED, "nurse": [(c,)] * 100, "engineer": [(c,)] * 100})
        for name, c in (("a", "male"), ("b", "female"))
    ]
    both = {name: pd.concat([getattr(f, name) for f in frames], ignore_index=True) for name in ("attributes", "scores")}
    images = pd.concat([f.images.assign(replicate=r) for r, f in enumerate(frames)], ignore_index=True)
    metrics = _metrics(frames[0], images=images, **both)
    row = _value(metrics, "neutral", "discrepancy_pooled", "gender")
    assert (row["value"], row["n"]) == (pytest.approx(np.sqrt(0.5)), 400)
    assert row["note"] == "seeds: 0.707 0.707"
    assert row["floor"] == pytest.approx(discrepancy_floor(200, 2))
    assert _value(metrics, "neutral", "share:male", "gender")["note"] == "seeds: 1 0"
    table = per_prompt_table("a", PROMPTS, images, both["attributes"], (GENDER,)).set_index("prompt_id")
    assert table.loc["nurse", ["discrepancy", "n"]].tolist() == pytest.approx([np.sqrt(0.5), 200])
    assert table.loc["nurse", "leading_share"] == pytest.approx(0.5)


def test_benchmarks_by_name_have_axes_of_their_own() -> None:
    prompts = PROMPTS.assign(benchmark=[*["jobs"] * 1, *PROMPTS["kind"].iloc[1:]])
    frames = _frames("base", BIASED)
    metrics = _metrics(frames, prompts=prompts, axes=(GENDER, RACE), benchmark_axes={"jobs": ["gender"], "neutral": []})
    assert list(metrics["benchmark"].unique()) == ["neutral", "jobs", "specific", "generic"]
    jobs = metrics[metrics["benchmark"] == "jobs"]
    assert set(jobs["axis"]) == {"gender", "all", ""}
    assert _value(metrics, "jobs", "share:female", "gender")["value"] == pytest.approx(0.95)
    assert set(metrics.loc[metrics["benchmark"] == "neutral", "metric"]) == {"clip_score"}


@pytest.mark.slow
def test_a_million_images_in_seconds_and_little_memory() -> None:
    generator = np.random.default_rng(0)
    n, n_prompts = 1_000_000, 1_000
    prompts = pd.DataFrame([_prompt(f"p{i}", "neutral") for i in range(n_prompts)])
    ids = pd.Series(np.arange(n)).astype(str)
    index = np.arange(n) // n_prompts
    images = pd.DataFrame(
        {"image_id": ids, "prompt_id": np.resize(prompts["prompt_id"], n), "index": index, "seed": index}
    )
    drawn = generator.random(n) < generator.beta(3, 2, n_prompts)[np.arange(n) % n_prompts]
    attributes = pd.DataFrame(
        {"image_id": ids, "axis": "gender", "class": np.where(drawn, "male", "female"), "classifier": "reader@1"}
    ).assign(drop_reason=None)
    scores = pd.DataFrame({"image_id": ids, "scorer": "clip_score", "version": "1", "value": generator.random(n)})
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    metrics = compute_metrics(prompts, SystemFrames("big", images, attributes, scores), (GENDER,), EvaluationConfig())
    seconds = time.process_time() - started
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    share = _value(metrics, "neutral", "share:male", "gender")
    assert share["n"] == n
    # prompts differ as Beta(3, 2) does, by .2; a million images of them are a thousand observations
    assert share["ci_high"] - share["ci_low"] == pytest.approx(2 * 1.96 * 0.2 / np.sqrt(n_prompts), rel=0.1)
    # 6 s and 420 MiB, which are hash tables of a million ids
    assert seconds < 30
    assert grown_kib < 2**20
