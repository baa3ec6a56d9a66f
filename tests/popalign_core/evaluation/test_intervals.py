import math

import numpy as np
import pytest

from popalign_core.config import EvaluationConfig
from popalign_core.evaluation.intervals import (
    Found,
    difference_interval,
    distance_interval,
    share_interval,
    t_quantile,
)
from popalign_core.evaluation.measures import Measure, Share, Worst, jackknife, ratio
from popalign_core.evaluation.share_distances import Distance, covariance

CONFIG = EvaluationConfig()


def norm(shares: np.ndarray) -> np.ndarray:
    return np.linalg.norm(shares - 0.5, axis=-1).mean(axis=-1)


def found(first: float) -> Found:
    return Found(np.array([[first, 1 - first]]), np.array([0.5, 0.5]), norm, np.array([400.0]))


def spread(deviation: float) -> np.ndarray:
    return deviation**2 * np.array([[1.0, -1.0], [-1.0, 1.0]])


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.7062), (2, 4.30265), (9, 2.26216), (13, 2.16037), (99, 1.98422), (9999, 1.96020)]
)
def test_students_t_as_tables_have_it(degrees: int, t: float) -> None:
    assert t_quantile(0.95, degrees) == pytest.approx(t, rel=1e-4)


def test_wilsons_interval_of_independent_images() -> None:
    # 10 of 100 at z = 1.96: (.0552, .1744), as in every table of it
    assert share_interval(0.1, 0.1 * 0.9 / 100, 100, 10**4, 0.95) == pytest.approx((0.0552, 0.1744), abs=2e-4)
    # 0 of n: z^2 / (n + z^2); no prompt differs, so images count as independent, and never as more than that
    assert share_interval(0.0, 0.0, 100, 10**4, 0.95) == pytest.approx((0.0, 3.8424 / 103.8424), abs=1e-4)
    assert share_interval(0.1, 1e-9, 100, 10**4, 0.95) == share_interval(0.1, 0.1 * 0.9 / 100, 100, 10**4, 0.95)


def test_far_from_the_centre_a_distance_of_two_classes_has_wilsons_interval() -> None:
    # D = sqrt(2) (p - .5); 400 images vary by .02 at p = .8, by more nearer to .5, by less further away
    ends = distance_interval(found(0.8), spread(0.02), 13, 0.95, (0, 2000))
    wilson = share_interval(0.8, 0.02**2, 400, 13, 0.95)
    assert ends == pytest.approx(tuple(math.sqrt(2) * (end - 0.5) for end in wilson), abs=1e-3)


def test_all_images_of_one_class_leave_room_for_others() -> None:
    """As Wilson's of 0 of n, about `t^2 / (n + t^2)`, though nothing varied that could be seen."""
    low, high = distance_interval(found(1.0), spread(math.sqrt(0.5 * 400.5) / 401 / 20), 13, 0.95, (0, 2000))
    share = share_interval(0.0, 0.0, 400, 13, 0.95)[1]
    assert low == pytest.approx(math.sqrt(2) * (0.5 - share), abs=3e-3)
    assert high >= math.sqrt(0.5)


def test_near_the_centre_it_begins_at_0_and_ends_one_sided() -> None:
    low, high = distance_interval(found(0.51), spread(0.02), 13, 0.95, (0, 2000))
    assert low == 0.0
    assert 0.02 * math.sqrt(2) < high < (0.01 + 2.5 * 0.02) * math.sqrt(2)
    # what fair shares would show is found by 5% of fair systems at most
    assert distance_interval(found(0.5 + 2.1 * 0.02), spread(0.02), 13, 0.95, (0, 2000))[0] == 0.0
    assert distance_interval(found(0.5 + 2.25 * 0.02), spread(0.02), 13, 0.95, (0, 2000))[0] > 0.0


def test_without_any_noise_there_is_no_width() -> None:
    assert distance_interval(found(0.8), np.zeros((2, 2)), 13, 0.95, (0, 100)) == pytest.approx(
        (0.4243, 0.4243), abs=1e-4
    )


def test_a_difference_knows_what_both_share() -> None:
    pair = (found(0.9), found(0.7))
    apart = np.kron(np.eye(2), spread(0.02))
    together = np.kron(np.full((2, 2), 0.99) + 0.01 * np.eye(2), spread(0.02))
    change, half = -0.2 * math.sqrt(2), 2.16037 * 0.02 * math.sqrt(2)
    low, high = difference_interval(*pair, apart, 13, 0.95, (0, 2000))
    assert (low, high) == pytest.approx((change - math.sqrt(2) * half, change + math.sqrt(2) * half), abs=6e-3)
    low, high = difference_interval(*pair, together, 13, 0.95, (0, 2000))
    assert high - low < 0.35 * half
    assert low < change < high


def test_one_draw_more_or_less_changes_little_and_a_seed_nothing() -> None:
    one, same, other = (
        distance_interval(found(0.6), spread(0.03), 13, 0.95, draws) for draws in ((0, 2000), (0, 2000), (1, 2000))
    )
    assert one == same
    assert one == pytest.approx(other, abs=2e-3)


def test_the_jackknife_of_a_mean_is_its_variance() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    terms = np.stack([values, np.ones(4)], axis=-1)[None]
    parts = jackknife(terms, lambda sums: ratio(sums).mean(axis=-1))
    assert (parts**2).sum() == pytest.approx(values.var(ddof=1) / 4)
    # a prompt without part changes nothing
    padded = np.concatenate([terms, np.zeros((1, 1, 2))], axis=1)
    assert jackknife(padded, lambda sums: ratio(sums).mean(axis=-1)) == pytest.approx([*parts, 0.0])


def test_the_spread_follows_prompts_not_images() -> None:
    """Ten prompts, all one class or all the other: sqrt(.25 / 9) = .1667, however many images each has."""
    widths = []
    for n in (60, 6000):
        part = np.array([n, 0] * 5, dtype=float)
        share = Share("share", "", np.stack([part, np.full(10, n)], axis=-1)[None], ratio, 10 * n)
        assert np.sqrt((share.contributions() ** 2).sum()) == pytest.approx(0.1667, abs=1e-4)
        widths.append(share.interval(CONFIG))
    assert widths[0] == widths[1]


def test_replicates_are_not_more_prompts() -> None:
    part = np.array([3.0, 5.0, 9.0, 4.0])
    terms = np.stack([part, np.full(4, 10.0)], axis=-1)[None]
    one = Measure("m", "", terms, ratio, 40)
    three = Measure("m", "", np.repeat(terms, 3, axis=0), ratio, 120)
    assert one.interval(CONFIG) == pytest.approx(three.interval(CONFIG))


def test_shares_vary_at_least_as_independent_images_do() -> None:
    """Four prompts, all images of one class: no prompt differs, and yet other images may show another class."""
    counts = np.zeros((1, 4, 2))
    counts[..., 0] = 25
    measure = Distance(
        "d", "", counts, lambda sums: np.zeros(1), 100, centre=np.array([0.5, 0.5]), distance=lambda s: s
    )
    # (100.5 / 101) (.5 / 101) / 100
    assert covariance([measure])[0, 0] == pytest.approx(100.5 * 0.5 / 101**2 / 100)


def test_the_worst_are_ten() -> None:
    values = np.arange(20.0)
    worst = Worst("w", "", np.stack([values, np.ones(20)], axis=-1)[None], ratio, 20)
    assert worst.value == np.mean(np.arange(10.0, 20.0))
    assert worst.degrees == 9
    lost = worst.terms.copy()
    lost[0, 19] = 0
    assert Worst("w", "", lost, ratio, 19).value == np.mean(np.arange(9.0, 19.0))
    # by the definition of a jackknife, also where values are equal and where a prompt shows nothing
    few_values = np.array([3.0, 1, 1, 2, 5, 5, 1, 4, 4, 1, 1, 2, 1, 9, 0, 0])
    terms = np.stack([few_values, np.arange(16) < 15], axis=-1)[None].astype(float)
    left_out = np.array([np.sort(np.delete(few_values[:15], number))[-10:].mean() for number in range(15)])
    expected = [*(left_out.mean() - left_out) * math.sqrt(14 / 15), 0.0]
    assert Worst("w", "", terms, ratio, 15).contributions() == pytest.approx(expected, abs=1e-12)
    # of ten prompts or fewer it is the mean, and has its variance
    few = Worst("w", "", worst.terms[:, :6], ratio, 6)
    assert (few.value, (few.contributions() ** 2).sum()) == (2.5, pytest.approx(values[:6].var(ddof=1) / 6))
