"""Rates read off reports of progress, with moments given by hand."""

from collections.abc import Sequence

import pytest

from tasks.common.stopwatch import Stopwatch


def watched(reports: Sequence[tuple[float, int]], total: int, end: float) -> tuple[Stopwatch, list[tuple[int, int]]]:
    """A watch started at 0 that was told (second, done), and what it handed on."""
    now, told = [0.0], list[tuple[int, int]]()
    watch = Stopwatch(lambda done, total: told.append((done, total)), clock=lambda: now[0])
    for second, done in reports:
        now[0] = second
        watch(done, total)
    now[0] = end
    return watch, told


def test_the_first_piece_holds_the_loading_and_the_last_the_end() -> None:
    """Ten images in 20 s with the model, ten in 5 s, ten in 7 s, the last four in 3 s: half a second to .6 an image."""
    watch, told = watched([(1, 0), (21, 10), (26, 20), (33, 30), (36, 34), (37, 34)], 34, 40)
    assert watch.unit_s() == pytest.approx((5 + 7) / 20)
    assert (watch.count(), watch.total, watch.seconds) == (34, 34, 40)
    assert told[-1] == (34, 34)


def test_training_reports_its_first_step_first() -> None:
    watch, _ = watched([(10, 1), (12, 2), (14, 3), (30, 4)], 4, 31)
    assert watch.unit_s() == 2
    assert watch.count() == 4


def test_what_a_killed_attempt_left_does_not_count() -> None:
    watch, _ = watched([(1, 128), (21, 160), (26, 192), (31, 224)], 224, 31)
    assert watch.count() == 96
    assert watch.unit_s() == pytest.approx(25 / 64)  # the first piece loads: it cannot be told from the others here


@pytest.mark.parametrize(("reports", "count"), [([(1, 0), (9, 27)], 27), ([(3, 1)], 1), ([], 0)])
def test_one_piece_says_nothing_of_a_unit(reports: list[tuple[float, int]], count: int) -> None:
    watch, _ = watched(reports, 27, 10)
    assert watch.unit_s() is None
    assert watch.count() == count
    assert watch.is_idle == (not reports)
