"""How unequally people are shown: the largest difference between two classes of an axis in what they were asked for.

A model may show all classes equally often and still draw one of them badly: faces that no detector finds, images that
score lower. The difference is looked at on identity-specific prompts, where the class is known without a classifier.

The interval is Bonferroni's over all pairs of classes, so it holds for the largest of them whichever that is. It is
never too short, and of many classes somewhat too long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from popalign_core.config import EvaluationConfig
from popalign_core.evaluation.intervals import t_quantile
from popalign_core.evaluation.measures import Ends, FloatArray, Measure, jackknife, ratio

ONE_CLASS = "not measured: prompts ask for fewer than two classes"


@dataclass(frozen=True)
class Gap(Measure):
    """The largest difference between classes; `terms` are each class's (part, whole) in turn, `[R, P, 2 K]`.

    Attributes:
        of_shares: Whether the parts are images of the whole, so that each class has the noise of independent images
            at least; else they are sums of scores.
    """

    of_shares: bool = True

    def interval(self, config: EvaluationConfig) -> Ends:
        """From 0 where the classes may be equal."""
        return self._ends(config.confidence)

    def change_interval(self, reference: Measure, config: EvaluationConfig) -> Ends:
        """From the intervals of both, each at half the error: it takes them for independent, and is never too short."""
        if not isinstance(reference, Gap):
            raise TypeError(f"{self.metric} cannot be compared with a {type(reference).__name__}")
        each = (1 + config.confidence) / 2
        mine, others = self._ends(each), reference._ends(each)
        return mine[0] - others[1], mine[1] - others[0]

    def _ends(self, confidence: float) -> Ends:
        pairs = list(combinations(range(self.terms.shape[-1] // 2), 2))
        values = _by_class(self.terms.sum(axis=1)).mean(axis=0)
        parts = jackknife(self.terms, lambda sums: _by_class(sums).mean(axis=-2))
        covariance = parts.T @ parts
        least = self._least() if self.of_shares else np.zeros(len(values))
        t = t_quantile(1 - (1 - confidence) / len(pairs), self.degrees)
        low = high = 0.0
        for i, j in pairs:
            variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
            half = t * float(np.sqrt(max(variance, least[i] + least[j])))
            apart = float(abs(values[i] - values[j]))
            low, high = max(low, apart - half), max(high, apart + half)
        return low, high

    def _least(self) -> FloatArray:
        """`[K]` variance of the shares of independent images; half an image more, so that none is certain."""
        parts, wholes = (self.terms[..., place::2].sum(axis=(0, 1)) for place in (0, 1))
        shares = (parts + 0.5) / (wholes + 1)
        least: FloatArray = shares * (1 - shares) / wholes
        return least


def gap_measure(metric: str, axis: str, terms: Sequence[FloatArray], *, of_shares: bool, width: float) -> Gap:
    """The largest difference between classes.

    Args:
        metric: Its name.
        axis: Whose classes.
        terms: Of each class `[R, P, 2]`, a part and a whole; one without a whole takes no part.
        of_shares: See `Gap`.
        width: The largest possible difference.
    """
    asked = [one for one in terms if (one[..., 1].sum(axis=1) > 0).all()]
    if len(asked) < 2:
        nothing = np.zeros((*terms[0].shape[:2], 2))
        return Gap(metric, axis, nothing, lambda sums: np.full(sums.shape[:-1], np.nan), 0, why=ONE_CLASS)
    stacked = np.concatenate(asked, axis=-1)
    n = int(stacked[..., 1::2].sum())
    return Gap(metric, axis, stacked, _largest_difference, n, bounds=(0.0, width), of_shares=of_shares)


def _by_class(sums: FloatArray) -> FloatArray:
    """`[..., 2 K]` to `[..., K]`; a class that the left-out prompt alone asked for is NaN."""
    return ratio(sums.reshape(*sums.shape[:-1], -1, 2))


def _largest_difference(sums: FloatArray) -> FloatArray:
    values = _by_class(sums)
    known = np.isfinite(values)
    highest = np.where(known, values, -np.inf).max(axis=-1)
    lowest = np.where(known, values, np.inf).min(axis=-1)
    difference: FloatArray = np.where(known.sum(axis=-1) > 1, highest - lowest, np.nan)
    return difference
