"""What the answers say: win rates by question, agreement of the raters, and raters who did not look.

Votes come as rows with `rater, pair_id, prompt_id, question, answer` (`a`, `b` or `tie`), `seconds`, `is_check`.
The answer that is known of a check is always `a`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import numpy as np
import pandas as pd

from popalign_core.config.review import StudyConfig
from popalign_core.evaluation.intervals import share_interval

ANSWERS = ("a", "tie", "b")
_CHANCE = 1 / len(ANSWERS)
_RESAMPLES = 500
_MOST_LOST = 0.05
"""Share of resamples without an alpha (all their answers are the same) above which it has no interval."""
_WINS = ["question", "by", "n", "n_wins", "n_ties", "n_losses", "win_rate", "ci_low", "ci_high"]


@dataclass(frozen=True)
class StudyResults:
    """Tables of a study.

    Attributes:
        wins: question, by (`majority` or `votes`), n, n_wins, n_ties, n_losses, win_rate of system A (ties half),
            ci_low, ci_high.
        agreement: question, alpha, ci_low, ci_high, n_pairs (with two raters or more), note.
        raters: rater, n_votes, n_checks, n_right, median_seconds, flag ("" or why).
    """

    wins: pd.DataFrame
    agreement: pd.DataFrame
    raters: pd.DataFrame


def evaluate_votes(votes: pd.DataFrame, config: StudyConfig, confidence: float = 0.95) -> StudyResults:
    """All results; the votes of flagged raters count neither for wins nor for agreement."""
    raters = judge_raters(votes, config)
    flagged = raters.loc[raters["flag"] != "", "rater"]
    counted = votes[~votes["rater"].isin(flagged) & ~votes["is_check"]]
    names = [question.name for question in config.questions]
    by_question = {name: counted[counted["question"] == name] for name in names}
    wins = [row for name in names for row in _win_rows(name, by_question[name], confidence)]
    agreement = [{"question": name, **agree(by_question[name], confidence)} for name in names]
    return StudyResults(pd.DataFrame(wins, columns=_WINS), pd.DataFrame(agreement), raters)


def majority(votes: pd.DataFrame) -> pd.DataFrame:
    """The answer given most often for each pair, `tie` where two lead: pair_id, prompt_id, answer; one question's."""
    counts = _answer_counts(votes)
    leads = counts.eq(counts.max(axis=1), axis=0)
    answer = counts.idxmax(axis=1).where(leads.sum(axis=1) == 1, "tie")
    prompts = votes.groupby("pair_id")["prompt_id"].first()
    return pd.DataFrame({"prompt_id": prompts, "answer": answer}).rename_axis("pair_id").reset_index()


def win_interval(scores: np.ndarray, clusters: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of a mean of scores that come in clusters: raters who judge one pair, pairs of one prompt.

    Wilson's at the effective number of scores, that of independent ones with the variance which the clusters show
    (Korn and Graubard 1998). Where the scores do not vary at all it is the number of clusters: ten unanimous pairs are
    ten observations, however many raters they had. One cluster says nothing.

    Args:
        scores: [V] float, 1 for a win, .5 for a tie, 0 for a loss.
        clusters: [V] what each score belongs to.
        confidence: For example .95.
    """
    index = np.unique(clusters, return_inverse=True)[1]
    rate, n = float(scores.mean()), int(index.max()) + 1
    if n < 2:
        return 0.0, 1.0
    residuals = np.bincount(index, weights=scores - rate)
    variance = n / (n - 1) * float((residuals**2).sum()) / len(scores) ** 2
    return share_interval(rate, variance, len(scores) if variance > 0 else n, n - 1, confidence)


def agree(
    votes: pd.DataFrame,
    confidence: float = 0.95,
    answers: Sequence[str] = ANSWERS,
    level: Literal["ordinal", "nominal"] = "ordinal",
) -> dict[str, Any]:
    """Krippendorff's alpha of one question's answers, in the order given; its interval by resampling pairs."""
    import krippendorff

    counts = _answer_counts(votes, answers).to_numpy()
    counts = counts[counts.sum(axis=1) > 1]
    row: dict[str, Any] = {"alpha": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n_pairs": len(counts), "note": ""}
    if not len(counts):
        return row | {"note": "not measured: no pair has two raters yet"}
    if (counts.sum(axis=0) > 0).sum() < 2:
        return row | {"note": "not measured: all answers are the same, so that chance would agree as well"}

    def alpha(table: np.ndarray) -> float:
        if (table.sum(axis=0) > 0).sum() < 2:
            return float("nan")
        return float(krippendorff.alpha(value_counts=table, level_of_measurement=level))

    value = alpha(counts)
    generator = np.random.default_rng(0)
    drawn = [alpha(counts[generator.integers(0, len(counts), len(counts))]) for _ in range(_RESAMPLES)]
    if np.isnan(drawn).mean() > _MOST_LOST:
        return row | {"alpha": value, "note": "no interval: in too many resamples all answers are the same"}
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail]).tolist()
    return row | {"alpha": value, "ci_low": low, "ci_high": high}


def judge_raters(votes: pd.DataFrame, config: StudyConfig) -> pd.DataFrame:
    """A row a rater; `flag` says why the answers are not to be trusted.

    Random answers pass a check once in three. A rater is flagged when random answers would pass as many checks, or
    more, with a probability above `max_luck`; so at least 1 - `max_luck` of random raters are flagged. Too few checks
    to tell (2 at .05) flag no one.
    """
    rows = []
    for rater, given in votes.groupby("rater"):
        checks = given[given["is_check"]]
        n, n_right = len(checks), int((checks["answer"] == "a").sum())
        seconds = float(given["seconds"].median())
        flags = []
        if _CHANCE**n <= config.max_luck < luck(n, n_right):
            flags.append(f"{n_right} of {n} checks right")
        if seconds < config.min_seconds:
            flags.append(f"median answer in {seconds:.1f} s")
        rows.append((rater, len(given), n, n_right, seconds, "; ".join(flags)))
    return pd.DataFrame(rows, columns=["rater", "n_votes", "n_checks", "n_right", "median_seconds", "flag"])


def luck(n: int, n_right: int) -> float:
    """Probability that answers at random pass `n_right` or more of `n` checks."""
    return sum(comb(n, k) * _CHANCE**k * (1 - _CHANCE) ** (n - k) for k in range(n_right, n + 1))


def _win_rows(question: str, votes: pd.DataFrame, confidence: float) -> list[dict[str, object]]:
    kinds = {"majority": majority(votes), "votes": votes} if len(votes) else {}
    return [{"question": question, "by": by, **_win_row(table, confidence)} for by, table in kinds.items()]


def _win_row(table: pd.DataFrame, confidence: float) -> dict[str, object]:
    counts = table["answer"].value_counts()
    scores = table["answer"].map({"a": 1.0, "tie": 0.5, "b": 0.0}).to_numpy(dtype=np.float64)
    low, high = win_interval(scores, table["prompt_id"].to_numpy(), confidence)
    n_wins, n_ties, n_losses = (int(counts.get(name, 0)) for name in ANSWERS)
    return {
        "n": len(table),
        "n_wins": n_wins,
        "n_ties": n_ties,
        "n_losses": n_losses,
        "win_rate": float(scores.mean()),
        "ci_low": low,
        "ci_high": high,
    }


def _answer_counts(votes: pd.DataFrame, answers: Sequence[str] = ANSWERS) -> pd.DataFrame:
    """[pairs, answers]: how many raters gave each."""
    table = pd.crosstab(votes["pair_id"], votes["answer"])
    return table.reindex(columns=list(answers), fill_value=0)
