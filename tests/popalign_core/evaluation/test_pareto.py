"""The fairness/quality front, on points whose answer is plain."""

from popalign_core.evaluation.pareto import dominators

NAN = float("nan")


def test_a_point_is_dominated_by_one_that_is_nowhere_worse_and_somewhere_better() -> None:
    #          front   front   by 1: equal in one   by 0, the first that does
    scores = [(3, 1), (1, 3), (1, 2), (2, 1)]
    assert dominators(scores) == [None, None, 1, 0]


def test_equal_points_dominate_nothing() -> None:
    assert dominators([(1, 1), (1, 1)]) == [None, None]


def test_a_point_that_was_not_measured_is_out_of_the_race() -> None:
    assert dominators([(5, NAN), (1, 1), (2, 2)]) == [None, 2, None]


def test_with_more_goals_more_points_stay() -> None:
    assert dominators([(2, 2, 1), (1, 1, 2)]) == [None, None]
    assert dominators([(2, 2, 2), (1, 1, 2)]) == [None, 0]
