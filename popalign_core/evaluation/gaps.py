"""How unequally people are shown: the largest difference between two classes of an axis in what they were asked for.

A model may show all classes equally often and still draw one of them badly: faces that no detector finds, images that
score lower. The difference is looked at on identity-specific prompts, where the class is known without a classifier.

The interval is Bonferroni's over all pairs of classes, so it holds for the largest of them whichever that is; of many
classes it is somewhat too long. The interval of a difference of two shares comes from Wilson's of each (MOVER: Zou and
Donner, Statistics in Medicine, 2008), which holds near 0; that of two means is `difference +- t s`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from popalign_core.config import EvaluationConfig
from popalign_core.evaluation.intervals import share_interval, t_quantile
from popalign_core.evaluation.measures import NO_ENDS, Ends, FloatArray, Measure, jackknife, ratio

ONE_CLASS = "not measured: prompts ask for fewer than two classes"


@dataclass(frozen=True)
class Gap(Measure):
    """The largest difference between classes; `terms` are each class's (part, whole) in turn, `[R, P, 2 K]`.

    Attributes:
        of_shares: Whether the parts are images of the whole; else they are sums of scores.
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
        mine, others = self._ends(each), reference._ends(each)  # NaN where either has none
        return mine[0] - others[1], mine[1] - others[0]

    def _ends(self, confidence: float) -> Ends:
        pairs = list(combinations(range(self.terms.shape[-1] // 2), 2))
        each = 1 - (1 - confidence) / len(pairs)
        values = _by_class(self.terms.sum(axis=1)).mean(axis=0)
        parts = jackknife(self.terms, lambda sums: _by_class(sums).mean(axis=-2))
        covariance = parts.T @ parts
        if not np.isfinite(covariance).all():
            return NO_ENDS  # a class that one prompt alone asks for
        reach = self._reach(values, np.diag(covariance), each)
        spread = np.sqrt(np.maximum(np.diag(covariance), 1e-24))
        alike = covariance / np.outer(spread, spread)
        low = high = 0.0
        for i, j in pairs:
            more, less = (i, j) if values[i] >= values[j] else (j, i)
            apart = float(values[more] - values[less])
            down = _together(reach[more, 0], reach[less, 1], alike[i, j])
            up = _together(reach[more, 1], reach[less, 0], alike[i, j])
            low, high = max(low, apart - down), max(high, apart + up)
        return low, high

    def _reach(self, values: FloatArray, variances: FloatArray, confidence: float) -> FloatArray:
        """`[K, 2]` how far below and above each class's value its own interval reaches."""
        if not self.of_shares:
            half = t_quantile(confidence, self.degrees) * np.sqrt(variances)
            return np.stack([half, half], axis=1)
        wholes = self.terms[..., 1::2].sum(axis=(0, 1))
        ends = [
            share_interval(value, variance, whole, self.degrees, confidence)
            for value, variance, whole in zip(values, variances, wholes, strict=True)
        ]
        return np.abs(np.array(ends) - values[:, None])


def _together(one: float, other: float, alike: float) -> float:
    """How far a difference reaches, from how far both its sides do and their correlation."""
    return float(np.sqrt(max(one**2 + other**2 - 2 * alike * one * other, 0.0)))


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
