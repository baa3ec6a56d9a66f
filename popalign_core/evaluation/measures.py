"""What is measured of one system, as sums over prompts: value, interval, difference, exchange with another system.

Every measure is a function of what its prompts add up to, within a replicate, averaged over replicates. From that
follow, for all of them alike: each prompt's contribution (jackknife), the covariance with another system on the same
prompts, and what the measure would be had the two systems changed places in some prompts (`paired.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from popalign_core.config import EvaluationConfig
from popalign_core.evaluation.intervals import share_interval, t_quantile

FloatArray = NDArray[np.float64]
Statistic = Callable[[FloatArray], FloatArray]
Ends = tuple[float, float]

NO_ENDS: Ends = (np.nan, np.nan)
NO_CLASS = "not measured: no class was read off any image"
ONE_PROMPT = "no interval: all images are of one prompt"
NOTHING = np.zeros(0)
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Measure:
    """A number whose interval is `value +- t s`: a mean of what prompts show, or of scores.

    Attributes:
        metric: Name in the metrics table.
        axis: Axis, 'all' for the joint of all axes, '' if none.
        terms: `[R, P, V]` what each prompt adds in each replicate; a prompt with 0 everywhere has no part.
        statistic: `[..., V]` sums to `[...]`.
        n: Images behind it.
        floor: What a perfectly fair sampler would be expected to show; None if there is no such thing.
        bounds: Least and largest possible value.
        why: Why there is no value, where there is none.
        loading: `[L]` how the errors of a calibration, each of variance 1, move it; the same errors move other systems.
        estimate: The value to report, where it is not the mean of `statistic` over replicates.
        least: Variance that images alone give the value, were all prompts alike; the interval is not narrower, even
            where all prompts show the largest value there is.
        assumes: What the value rests on besides the images; for the table's note.
        effective: `[R]` how many images of equal weight would vary as much, where they weigh differently; else empty.
    """

    metric: str
    axis: str
    terms: FloatArray
    statistic: Statistic
    n: int
    floor: Callable[[], float] | None = None
    bounds: Ends = (-np.inf, np.inf)
    why: str = ""
    loading: FloatArray = field(default_factory=lambda: NOTHING)
    estimate: float | None = None
    least: float = 0.0
    assumes: str = ""
    effective: FloatArray = field(default_factory=lambda: NOTHING)

    @property
    def has_part(self) -> NDArray[np.bool_]:
        """`[P]` the prompts that add anything."""
        part: NDArray[np.bool_] = (self.terms != 0).any(axis=(0, 2))
        return part

    @property
    def n_prompts(self) -> int:
        """How many of them there are in every replicate at least; an interval needs two."""
        return int((self.terms != 0).any(axis=2).sum(axis=1).min(initial=self.terms.shape[1]))

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the interval."""
        return self.n_prompts - 1

    def replicates(self) -> FloatArray:
        """`[R]` the value in each replicate."""
        return self.statistic(self.terms.sum(axis=1))

    @property
    def value(self) -> float:
        """The value; NaN when a replicate has nothing to measure."""
        return float(self.replicates().mean()) if self.estimate is None else self.estimate

    @property
    def reason(self) -> str:
        """Why there is no value, where it is not finite."""
        if self.n == 0:
            return self.why
        if np.isinf(self.value):
            return "not measured: infinite, as a class was read whose target is 0"
        replicates = self.replicates()
        place = int(np.flatnonzero(~np.isfinite(replicates))[0])
        return f"{self.why} in replicate {place}" if len(replicates) > 1 else self.why

    def contributions(self) -> FloatArray:
        """`[P]` numbers whose squares add up to the variance of the value, and whose products to a covariance."""
        return jackknife(self.terms, lambda sums: self.statistic(sums).mean(axis=-1))

    def interval(self, config: EvaluationConfig) -> Ends:
        """(low, high), around the mean of `statistic` and not cut; at least two prompts."""
        spread = np.concatenate([self.contributions(), self.loading])
        variance = max(float((spread**2).sum()), self.least)
        return _student(float(self.replicates().mean()), variance, self.degrees, config)

    def change_interval(self, reference: "Measure", config: EvaluationConfig) -> Ends:
        """Interval of `self - reference`, both on the same prompts."""
        spread = np.concatenate(
            [self.contributions() - reference.contributions(), _difference(self.loading, reference.loading)]
        )
        change = _rounded(float(self.replicates().mean() - reference.replicates().mean()))
        variance = max(float((spread**2).sum()), self._least_change(reference))
        return _student(change, variance, min(self.degrees, reference.degrees), config)

    def _least_change(self, reference: "Measure") -> float:
        """Variance that the difference has at least."""
        return 0.0

    def bounded_interval(self, config: EvaluationConfig) -> Ends:
        """`interval`, cut to what is possible and holding the value; NaN if it rests on one prompt alone."""
        # One prompt says nothing about other prompts: no interval rather than a narrow one.
        ends = self.interval(config) if self.n_prompts > 1 else NO_ENDS
        return _holding(self.value, ends, self.bounds)

    def bounded_change(self, reference: "Measure", config: EvaluationConfig) -> Ends:
        """`change_interval`, cut to what is possible and holding the difference; NaN as `bounded_interval`."""
        width = max(self.bounds[1] - self.bounds[0], reference.bounds[1] - reference.bounds[0])
        few = min(self.n_prompts, reference.n_prompts) < 2
        ends = NO_ENDS if few else self.change_interval(reference, config)
        return _holding(self.change(reference), ends, (-width, width))

    def change(self, reference: "Measure") -> float:
        """`self - reference`."""
        return _rounded(self.value - reference.value)

    def exchanged(self, reference: "Measure", swapped: FloatArray) -> FloatArray:
        """The difference `self - reference` had the two changed places in some prompts.

        Args:
            reference: On the same prompts and replicates.
            swapped: `[M, P]` of 0 and 1.

        Returns:
            `[M]`.
        """
        moved = np.einsum("mp,rpv->mrv", swapped, reference.terms - self.terms, optimize=True)
        mine = self.statistic(self.terms.sum(axis=1) + moved).mean(axis=-1)
        others = self.statistic(reference.terms.sum(axis=1) - moved).mean(axis=-1)
        change: FloatArray = mine - others
        return change


@dataclass(frozen=True)
class Share(Measure):
    """A share of images: of those in a part among those in a whole. `terms` are both, `[R, P, 2]`."""

    def interval(self, config: EvaluationConfig) -> Ends:
        """Wilson's."""
        variance = float((self.contributions() ** 2).sum())
        return share_interval(self.value, variance, self._n_effective, self.degrees, config.confidence)

    @property
    def _n_effective(self) -> float:
        return float(self.effective.sum()) if len(self.effective) else self.n

    def _least_change(self, reference: Measure) -> float:
        """No finer than one image: none of 80 and none of 80 need not be the very same share."""
        return 1 / min(share._n_effective for share in (self, reference) if isinstance(share, Share)) ** 2


@dataclass(frozen=True)
class Worst(Measure):
    """The mean of the `N_WORST` prompts with the largest values; `terms` are (value, 1), (0, 0) where there is none."""

    N_WORST = 10

    @property
    def degrees(self) -> int:
        """Only the worst say how far they are spread."""
        return min(self.N_WORST, self.n_prompts) - 1

    def replicates(self) -> FloatArray:
        """`[R]`."""
        return worst_mean(self._values(self.terms))

    def contributions(self) -> FloatArray:
        """As of every measure; without a prompt, the worst ten are ten of the others."""
        left_out = np.stack([_worst_without(values) for values in self._values(self.terms)], axis=-1)
        parts: FloatArray = _from_left_out(left_out[self.has_part], self.has_part).mean(axis=-1)
        return parts

    def exchanged(self, reference: Measure, swapped: FloatArray) -> FloatArray:
        """As of every measure; the ten worst are looked for again."""
        chosen = swapped[:, None, :] > 0
        mine, others = self._values(self.terms), self._values(reference.terms)
        sides = (np.where(chosen, others, mine), np.where(chosen, mine, others))
        here, there = (worst_mean(side).mean(axis=-1) for side in sides)
        change: FloatArray = here - there
        return change

    @staticmethod
    def _values(terms: FloatArray) -> FloatArray:
        values: FloatArray = np.where(terms[..., 1] > 0, terms[..., 0], np.nan)
        return values


def jackknife(terms: FloatArray, statistic: Statistic) -> FloatArray:
    """What each prompt contributes to a statistic of sums over prompts.

    Args:
        terms: `[R, P, V]`.
        statistic: `[..., R, V]` sums to `[...]` or to `[..., W]`.

    Returns:
        `[P]` or `[P, W]`, the sum of squares (products) over P being the jackknife's estimate of the (co)variance;
        0 for prompts without part.
    """
    known = (terms != 0).any(axis=(0, 2))
    return _from_left_out(statistic((terms.sum(axis=1, keepdims=True) - terms).transpose(1, 0, 2)[known]), known)


def _from_left_out(left_out: FloatArray, known: NDArray[np.bool_]) -> FloatArray:
    """What is shown without each known prompt to what that prompt contributes."""
    n = len(left_out)
    parts = np.zeros((len(known), *left_out.shape[1:]))
    parts[known] = (left_out.mean(axis=0) - left_out) * np.sqrt((n - 1) / n)
    return parts


def ratio(sums: FloatArray) -> FloatArray:
    """`[..., 2]` a part and a whole to their quotient; NaN where the whole is 0."""
    total = sums[..., 1]
    ratio: FloatArray = np.divide(sums[..., 0], total, out=np.full_like(total, np.nan), where=total > 0)
    return ratio


def _student(value: float, variance: float, degrees: int, config: EvaluationConfig) -> Ends:
    half = t_quantile(config.confidence, degrees) * float(np.sqrt(variance))
    return value - half, value + half


def worst_mean(values: FloatArray) -> FloatArray:
    """`[..., P]` to `[...]`: mean of the ten largest that are not NaN; NaN when there are none."""
    n = min(Worst.N_WORST, values.shape[-1])
    filled = np.where(np.isnan(values), -np.inf, values)
    largest = np.partition(filled, values.shape[-1] - n, axis=-1)[..., values.shape[-1] - n :]
    known = np.isfinite(largest)
    counted = known.sum(axis=-1)
    total = np.where(known, largest, 0.0).sum(axis=-1)
    mean: FloatArray = np.divide(total, counted, out=np.full_like(total, np.nan), where=counted > 0)
    return mean


def _worst_without(values: FloatArray) -> FloatArray:
    """`[P]` to `[P]`: `worst_mean` of all but one; prompts that are NaN change nothing."""
    known = np.isfinite(values)
    ordered = -np.sort(-values[known])
    n = min(Worst.N_WORST, len(ordered))
    worst, following = ordered[:n].sum(), ordered[n : n + 1]  # what moves up into the worst, if anything is left
    is_counted = known & (values >= ordered[n - 1]) if n else known
    without = (worst - values + following.sum()) / max(n - 1 + len(following), 1)
    left_out: FloatArray = np.where(is_counted, without, worst / max(n, 1))
    return left_out


def _rounded(change: float) -> float:
    """Two systems that are equal differ by 0 and not by 1e-18, which would lie on one side of 0 for certain."""
    return 0.0 if abs(change) < _ROUNDING else change


def _holding(value: float, ends: Ends, bounds: Ends) -> Ends:
    if not np.isfinite(ends).all():
        return NO_ENDS
    low, high = (float(np.clip(end, *bounds)) for end in ends)
    return min(low, value), max(high, value)


def _difference(mine: FloatArray, others: FloatArray) -> FloatArray:
    return mine - others if mine.shape == others.shape else np.concatenate([mine, others])
