"""Shares corrected for a classifier's mistakes, and how well they are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from popalign_core.config import Axis, EvaluationConfig
from popalign_core.errors import InputError
from popalign_core.evaluation.correction import Calibrated, calibrated_axes, corrected_measures
from popalign_core.evaluation.counts import FloatArray
from popalign_core.evaluation.measures import Measure
from popalign_core.evaluation.metrics import measure_row

GENDER = Axis(name="gender", classes=("male", "female"))
CONFIG = EvaluationConfig()
Z = 1.959964


def calibration(
    right: tuple[float, float], n: int, classifier: str = "r@1", width: float = 1.0, read: tuple[float, float] = (1, 1)
) -> pd.DataFrame:
    """`n` images read of each class; intervals `width` times as wide as of independent images."""
    rows = []
    for true, wrong, part, found in (("male", "female", right[0], read[0]), ("female", "male", right[1], read[1])):
        half = width * Z * np.sqrt(part * (1 - part) / n)
        for name, share in ((true, part), (wrong, 1 - part)):
            rows.append((classifier, "gender", true, name, round(n * share), share, share - half, share + half))
        half = width * Z * np.sqrt(found * (1 - found) * found / n)
        missed = round(n * (1 - found) / found)
        rows.append((classifier, "gender", true, "", missed, 1 - found, 1 - found - half, 1 - found + half))
    names = ["classifier", "axis", "true_class", "read_class", "n", "share", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=names)


def measures(men_read: list[int], table: pd.DataFrame, n: int = 100) -> dict[str, Measure]:
    men = np.array(men_read, dtype=np.float64)
    known = calibrated_axes(table, "r@1", [GENDER], 0.95)
    found = corrected_measures(GENDER, np.stack([men, n - men], axis=-1)[None], known["gender"])
    return {measure.metric: measure for measure in found}


def test_a_balanced_set_read_as_76_percent_men() -> None:
    """NUMBERS.md: DeepFace reads .966 of men and .445 of women right; of as many of both, (.966 + .555) / 2 = .7605."""
    found = measures([76, 76, 76, 77], calibration((0.966, 0.445), 1000))
    assert found["share_corrected:male"].value == pytest.approx(0.5, abs=0.005)
    assert found["discrepancy_corrected"].value == pytest.approx(0.0, abs=0.008)
    # CLEAM, Eq. 8 for two classes: (q - (1 - a1)) / (a0 - (1 - a1))
    assert found["share_cleam:male"].value == pytest.approx((0.7625 - 0.555) / (0.966 - 0.555), abs=1e-6)


def test_the_constraint_and_cleam_part_where_readings_cannot_be_explained() -> None:
    found = measures([98, 99, 97, 98], calibration((0.9, 0.75), 1000))
    assert found["share_cleam:male"].value == pytest.approx((0.98 - 0.25) / 0.65)
    assert found["share_corrected:male"].value == 1.0
    assert found["share_corrected:male"].bounded_interval(CONFIG)[1] == 1.0
    assert found["discrepancy_corrected"].value == pytest.approx(np.sqrt(0.5))


def test_without_a_face_there_is_a_reason_and_no_number() -> None:
    found = measures([0] * 4, calibration((0.9, 0.75), 1000), n=0)
    assert len(found) == 8
    assert {measure.reason for measure in found.values()} == {"not measured: no class was read off any image"}
    assert not np.isfinite([measure.value for measure in found.values()]).any()


def test_errors_of_the_calibration_are_in_the_interval() -> None:
    """All prompts alike: the only error is that of the matrix, by hand for p = (p, 1 - p), d = a0 + a1 - 1 = .65."""
    n = 200
    found = measures([60] * 6, calibration((0.9, 0.75), n))
    p = (0.6 - 0.25) / 0.65
    variance = (p**2 * 0.9 * 0.1 + (1 - p) ** 2 * 0.75 * 0.25) / n / 0.65**2
    loading = found["share_corrected:male"].loading
    assert (loading**2).sum() == pytest.approx(variance, rel=0.03)  # half an image more a cell
    assert (found["discrepancy_corrected"].loading ** 2).sum() == pytest.approx(2 * variance, rel=0.03)
    low, high = found["share_corrected:male"].bounded_interval(CONFIG)
    assert (high - low) / 2 == pytest.approx(2.5706 * np.sqrt(variance), rel=0.03)
    # intervals twice as wide in the calibration: its images came from few prompts
    wide = measures([60] * 6, calibration((0.9, 0.75), n, width=2.0))["share_corrected:male"].loading
    assert (wide**2).sum() == pytest.approx(4 * variance, rel=0.03)


def test_two_systems_share_the_calibrations_errors() -> None:
    table = calibration((0.9, 0.75), 200)
    first, second = (measures([men] * 6, table) for men in (60, 61))
    alone = first["share_corrected:male"].bounded_interval(CONFIG)
    change = second["share_corrected:male"].bounded_change(first["share_corrected:male"], CONFIG)
    assert change[1] - change[0] < 0.1 * (alone[1] - alone[0])
    distance = second["discrepancy_corrected"].bounded_change(first["discrepancy_corrected"], CONFIG)
    assert distance[0] <= 0.01 / 0.65 * np.sqrt(2) <= distance[1]


def test_a_detector_that_misses_women_is_corrected_for() -> None:
    """As many of both, 95% of the men found and 60% of the women: 613 of 1,000 faces are men's."""
    men, women = 95, 60
    found = measures([men] * 6, calibration((1.0, 1.0), 900, read=(0.95, 0.6)), n=men + women)
    assert found["share_cleam:male"].value == pytest.approx(men / (men + women))
    for kind in ("share_corrected", "share_weighted"):
        assert found[f"{kind}:male"].value == pytest.approx(0.5, abs=0.002)
        assert found[f"{kind}:female"].value == pytest.approx(0.5, abs=0.002)
    assert found["discrepancy_corrected"].value == pytest.approx(0.0, abs=0.003)
    row = measure_row("base", "neutral", "r@1", found["share_corrected:male"], CONFIG)
    assert "classes are read as often as in the calibration, from 60% of female to 95% of male" in row["note"]
    assert "assumes" not in measure_row("base", "neutral", "r@1", found["share_cleam:male"], CONFIG)["note"]


def test_missed_and_misread_faces_are_corrected_for_together() -> None:
    read = np.array([0.5, 0.5]) * (0.9, 0.7) @ np.array([[0.9, 0.1], [0.25, 0.75]])
    men, women = (round(1000 * part) for part in read)
    found = measures([men] * 4, calibration((0.9, 0.75), 10_000, read=(0.9, 0.7)), n=men + women)
    assert found["share_corrected:male"].value == pytest.approx(0.5, abs=0.002)
    # weighted by detection alone, the mistakes stay
    assert found["share_weighted:male"].value == pytest.approx((men / 0.9) / (men / 0.9 + women / 0.7), abs=0.001)


def test_how_well_detection_is_known_is_in_the_interval() -> None:
    """All prompts alike, no mistakes: the variance of p = (m / a) / (m / a + w / b), by hand p^2 (1 - p)^2 times the
    relative variances of a and b.
    """
    table = calibration((1.0, 1.0), 200, read=(0.8, 0.5))
    found = measures([80] * 6, table, n=130)["share_weighted:male"]
    variance = 0.5**4 * (0.2 / 0.8 / (200 / 0.8) + 0.5 / 0.5 / (200 / 0.5))
    assert (found.loading**2).sum() == pytest.approx(variance, rel=0.03)
    low, high = found.bounded_interval(CONFIG)
    assert (high - low) / 2 == pytest.approx(2.5706 * np.sqrt(variance), rel=0.03)


def test_derivatives_are_those_of_small_steps() -> None:
    generator = np.random.default_rng(1)
    known = Calibrated(
        confusion=0.7 * np.eye(3) + 0.3 * generator.dirichlet(np.ones(3), 3),
        errors=0.02 * generator.standard_normal((3, 3, 3)),
        detection=np.array([0.95, 0.8, 0.6]),
        detection_errors=np.array([0.01, 0.02, 0.04]),
    )
    read = np.array([0.5, 0.3, 0.2])
    inversion, step = known.inversion(all_images=True), 1e-6
    moved = [inversion.true_shares(read + step * one) - inversion.true_shares(read) for one in np.eye(3)]
    np.testing.assert_allclose(inversion.derivative(read), np.array(moved) / step, atol=1e-5)
    shares = known.inversion(all_images=False).true_shares(read)[None]
    loading = known.loading_of_all(shares)[0]
    for place, error in enumerate(np.eye(9)):
        changed = replace(
            known, confusion=known.confusion + step * (known.errors @ error.reshape(3, 3)[:, :, None])[..., 0]
        )
        by_step = (changed.inversion(all_images=True).true_shares(read) - inversion.true_shares(read)) / step
        np.testing.assert_allclose(loading[:, place], by_step, atol=1e-4)
    for place in range(3):
        changed = replace(known, detection=known.detection + step * np.eye(3)[place] * known.detection_errors[place])
        by_step = (changed.inversion(all_images=True).true_shares(read) - inversion.true_shares(read)) / step
        np.testing.assert_allclose(loading[:, 9 + place], by_step, atol=1e-5)


def test_another_classifiers_calibration_is_refused() -> None:
    with pytest.raises(InputError, match=r"is of the classifier \['other@2'\], the images were read by 'r@1'"):
        calibrated_axes(calibration((0.9, 0.75), 50, "other@2"), "r@1", [GENDER], 0.95)
    assert calibrated_axes(None, "r@1", [GENDER], 0.95) == {}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (calibration((0.9, 0.75), 50).query("true_class == 'male'"), "has not all classes"),
        (calibration((0.5, 0.5), 50), "cannot be inverted"),
    ],
)
def test_a_calibration_of_no_use_is_a_reason_in_the_row(table: pd.DataFrame, reason: str) -> None:
    found = measures([60] * 6, table)
    assert {metric.partition(":")[0] for metric in found} == {
        *("discrepancy_corrected", "discrepancy_cleam", "share_corrected", "share_cleam", "share_weighted"),
    }
    for measure in found.values():
        assert measure.n == 0
        assert np.isnan(measure.value)
        assert measure.why.startswith("not measured: ")
        assert reason in measure.why


def test_six_classes_are_turned_back() -> None:
    generator = np.random.default_rng(0)
    axis = Axis(name="race", classes=tuple("abcdef"))
    confusion: FloatArray = 0.7 * np.eye(6) + 0.3 * generator.dirichlet(np.ones(6), 6)
    true = np.array([0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
    counts = np.round(np.repeat((true @ confusion)[None], 5, axis=0) * 1e5)
    rows = [
        ("r@1", "race", a, b, round(1e5 * confusion[i, j]), confusion[i, j], np.nan, np.nan)
        for i, a in enumerate(axis.classes)
        for j, b in enumerate(axis.classes)
    ]
    names = ["classifier", "axis", "true_class", "read_class", "n", "share", "ci_low", "ci_high"]
    known = calibrated_axes(pd.DataFrame(rows, columns=names), "r@1", [axis], 0.95)
    found = {m.metric: m.value for m in corrected_measures(axis, counts[None], known["race"])}
    for kind in ("share_corrected", "share_cleam"):
        assert [found[f"{kind}:{name}"] for name in axis.classes] == pytest.approx(true, abs=1e-3)
