"""What votes say: worked by hand, and with simulated raters whose preference is known."""

import numpy as np
import pandas as pd
import pytest

from popalign_core.config.review import SETS, StudyConfig
from popalign_core.review.vote_results import agree, evaluate_votes, judge_raters, luck, majority, win_interval

QUALITY = StudyConfig(questions=SETS.questions[1:])


def table(answers: dict[str, str], question: str = "quality") -> pd.DataFrame:
    """Pair -> one letter a rater: a, b, t (tie), or '-' for none."""
    said = {"a": "a", "b": "b", "t": "tie"}
    rows = [
        (f"r{number}", pair, f"prompt {pair}", question, said[letter], 2.0, False)
        for pair, letters in answers.items()
        for number, letter in enumerate(letters)
        if letter != "-"
    ]
    return pd.DataFrame(rows, columns=["rater", "pair_id", "prompt_id", "question", "answer", "seconds", "is_check"])


def checks(right: int, wrong: int, rater: str = "r0", seconds: float = 2.0) -> pd.DataFrame:
    rows = [(rater, f"c{n}", "p", "quality", "a" if n < right else "tie", seconds, True) for n in range(right + wrong)]
    return pd.DataFrame(rows, columns=list(table({"x": "a"}).columns))


def test_the_majority_is_what_most_said_and_a_draw_is_a_tie() -> None:
    found = majority(table({"1": "aab", "2": "abt", "3": "ttb", "4": "bbb", "5": "aabb", "6": "a"}))
    assert dict(zip(found["pair_id"], found["answer"], strict=True)) == {
        "1": "a",
        "2": "tie",
        "3": "tie",
        "4": "b",
        "5": "tie",
        "6": "a",
    }
    assert list(found["prompt_id"]) == [f"prompt {n}" for n in range(1, 7)]


def test_win_rates_count_ties_half() -> None:
    wins = evaluate_votes(table({"1": "aab", "2": "att", "3": "bbb", "4": "aat"}), QUALITY).wins.set_index("by")
    # majority: a, tie, b, a -> (1 + .5 + 0 + 1) / 4; votes: a 2+1+0+2, ties 0+2+0+1 of 12
    assert wins.loc["majority", ["n", "n_wins", "n_ties", "n_losses", "win_rate"]].tolist() == [4, 2, 1, 1, 0.625]
    assert wins.loc["votes", ["n", "n_wins", "n_ties", "n_losses"]].tolist() == [12, 5, 3, 4]
    assert wins.loc["votes", "win_rate"] == pytest.approx((5 + 1.5) / 12)


def test_votes_on_checks_are_no_votes_on_systems() -> None:
    votes = pd.concat([table({"1": "bbb"}), checks(6, 0)])
    assert evaluate_votes(votes, QUALITY).wins["n_wins"].tolist() == [0, 0]


def test_the_interval_of_independent_votes_is_wilsons() -> None:
    """40 of 100, a vote a pair: Wilson's 95% is .3094 to .4980; Student's quantile widens it a little."""
    scores = np.array([1.0] * 40 + [0.0] * 60)
    low, high = win_interval(scores, np.arange(100), 0.95)
    assert (low, high) == pytest.approx((0.3094, 0.4980), abs=0.003)


def test_raters_who_repeat_each_other_add_nothing() -> None:
    scores, clusters = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0] * 6, 5), np.repeat(np.arange(30), 5)
    alone = win_interval(scores[::5], np.arange(30), 0.95)
    together = win_interval(scores, clusters, 0.95)
    assert together == pytest.approx(alone, abs=0.005)
    low, high = win_interval(scores, np.arange(150), 0.95)
    assert high - low < 0.5 * (alone[1] - alone[0])


def test_unanimous_pairs_count_as_one_each_and_one_pair_says_nothing() -> None:
    low, high = win_interval(np.ones(30), np.repeat(np.arange(10), 3), 0.95)
    assert high == 1.0
    assert low == pytest.approx(0.66, abs=0.02)  # Wilson at 10 of 10 with Student's quantile for 9 degrees of freedom
    assert win_interval(np.ones(3), np.zeros(3), 0.95) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("n_pairs", "rate", "alike", "ties"), [(20, 0.7, 0.2, 0.2), (40, 0.9, 0.3, 0.1), (20, 0.5, 0, 0)]
)
def test_intervals_cover_the_preference_of_simulated_raters(
    n_pairs: int, rate: float, alike: float, ties: float
) -> None:
    """Pairs differ in how clear they are (a beta distribution); three raters each; 400 studies."""
    generator, truth, n_covered = np.random.default_rng(0), ties / 2 + (1 - ties) * rate, 0
    for _ in range(400):
        shape = (1 / alike - 1) if alike else 1e6
        clear = generator.beta(rate * shape, (1 - rate) * shape, (n_pairs, 1))
        scores = np.where(generator.random((n_pairs, 3)) < ties, 0.5, generator.random((n_pairs, 3)) < clear)
        low, high = win_interval(scores.ravel(), np.repeat(np.arange(n_pairs), 3), 0.95)
        n_covered += low <= truth <= high
    assert 0.93 <= n_covered / 400 <= 0.99


def test_alpha_by_hand() -> None:
    """Two raters, 4 pairs, answers a a / a a / b b / a b, no ties: two values, so that ordinal is nominal.

    Observed disagreement 2 of 8 ordered values; a 5, b 3: expected 2 * 5 * 3 / (8 * 7). alpha = 1 - (2/8) / (30/56).
    """
    row = agree(table({"1": "aa", "2": "aa", "3": "bb", "4": "ab", "5": "a-"}))
    assert row["alpha"] == pytest.approx(1 - (2 / 8) / (30 / 56))
    assert row["n_pairs"] == 4
    assert np.isnan(row["ci_low"]), "of so few pairs too many resamples hold one answer only"


def test_the_interval_of_alpha_is_around_it_and_narrows_with_more_pairs() -> None:
    rows = [agree(table({str(n): ("aa", "bb", "ab", "bb")[n % 4] for n in range(size)})) for size in (24, 240)]
    widths = [row["ci_high"] - row["ci_low"] for row in rows]
    assert all(row["ci_low"] < row["alpha"] < row["ci_high"] for row in rows)
    assert widths[1] < widths[0] / 2


def test_a_tie_is_nearer_to_either_answer_than_they_are_to_each_other() -> None:
    base = {str(n): "aa" if n % 2 else "bb" for n in range(10)} | {"u": "tt", "v": "tt"}
    near, far = agree(table(base | {"x": "at"})), agree(table(base | {"x": "ab"}))
    assert near["alpha"] > far["alpha"]


@pytest.mark.parametrize(
    ("answers", "note"), [({"1": "a", "2": "b"}, "no pair has two raters"), ({"1": "aa", "2": "aa"}, "all answers are")]
)
def test_agreement_that_cannot_be_measured_says_why(answers: dict[str, str], note: str) -> None:
    row = agree(table(answers))
    assert np.isnan(row["alpha"])
    assert note in row["note"]


def test_luck_is_the_binomial_tail() -> None:
    assert luck(3, 3) == pytest.approx(1 / 27)
    assert luck(6, 5) == pytest.approx((6 * 2 + 1) / 729)
    assert luck(4, 0) == pytest.approx(1)


@pytest.mark.parametrize(
    ("right", "wrong", "flag"),
    [(6, 0, ""), (5, 1, ""), (4, 2, "4 of 6 checks right"), (0, 3, "0 of 3 checks right"), (0, 2, ""), (0, 0, "")],
)
def test_checks_flag_who_does_no_better_than_chance(right: int, wrong: int, flag: str) -> None:
    """luck(6, 5) = .018, luck(6, 4) = .10; with 2 checks nobody can do better than 1/9."""
    votes = pd.concat([table({"1": "a"}), checks(right, wrong)])
    assert judge_raters(votes, SETS)["flag"].tolist() == [flag]


def test_answers_too_quick_to_have_looked_are_flagged() -> None:
    assert judge_raters(checks(6, 0, seconds=0.4), SETS)["flag"].tolist() == ["median answer in 0.4 s"]


def test_flagged_raters_do_not_count() -> None:
    votes = table({str(n): "ab" for n in range(5)})
    votes = pd.concat([votes, checks(6, 0, "r0"), checks(1, 5, "r1")])
    results = evaluate_votes(votes, QUALITY)
    assert results.raters.set_index("rater")["flag"].to_dict() == {"r0": "", "r1": "1 of 6 checks right"}
    assert results.wins[["n", "n_wins"]].to_numpy().tolist() == [[5, 5], [5, 5]]


def test_simulated_random_raters_are_flagged_and_attentive_ones_are_not() -> None:
    """1000 of each: at random one check in three is passed; attentive people miss one in fifty."""
    generator = np.random.default_rng(0)
    passed, raters = [checks(n, 6 - n) for n in range(7)], np.repeat([f"r{number:04}" for number in range(1000)], 6)
    for rate, low, high in ((1 / 3, 1 - SETS.max_luck, 1.0), (0.98, 0.0, 0.01)):
        given = pd.concat([passed[n] for n in generator.binomial(6, rate, 1000)]).assign(rater=raters)
        flagged = (judge_raters(given, SETS)["flag"] != "").mean()
        assert low <= flagged <= high
