"""Distances of the shares of all prompts together from a centre, which noise only pushes away from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from popalign_core.config import EvaluationConfig
from popalign_core.evaluation.fairness import class_shares
from popalign_core.evaluation.intervals import Found, difference_interval, distance_interval
from popalign_core.evaluation.measures import NOTHING, Ends, FloatArray, Measure, Statistic, jackknife


@dataclass(frozen=True)
class Inversion:
    """From shares of classes read to true shares.

    An image of class i is read at all with probability `detection[i]`, and then as j with `confusion[i, j]`. Of the
    images read the true shares are `u = q confusion^-1`, and of all images they are as `u / detection`. How many were
    not read does not enter: images that show nobody would otherwise be taken for a class that is hard to detect.

    Attributes:
        inverse: `[K, K]`, of the confusion matrix.
        detection: `[K]`, in (0, 1].
    """

    inverse: FloatArray
    detection: FloatArray

    def true_shares(self, read: FloatArray) -> FloatArray:
        """`[..., K]` shares of images read to `[..., K]`, which sum to 1 and may leave [0, 1]."""
        return self.of_all(read @ self.inverse)

    def of_all(self, shares: FloatArray) -> FloatArray:
        """`[..., K]` true shares of the images read to those of all images."""
        weighted = shares / self.detection
        shares_of_all: FloatArray = weighted / weighted.sum(axis=-1, keepdims=True)
        return shares_of_all

    def faces(self, read: FloatArray) -> FloatArray:
        """`[..., K]` images read to how many faces of these images' true classes stand behind them, `[...]`."""
        sizes = read.sum(axis=-1)
        faces = (read @ self.inverse / self.detection).sum(axis=-1)
        # few images may invert to less than none of a class
        within: FloatArray = np.clip(faces, sizes / self.detection.max(), sizes / self.detection.min())
        return within

    def derivative(self, read: FloatArray) -> FloatArray:
        """`[..., K]` to `[..., K, K]`: a small change of the shares read, times this, is that of the true shares."""
        weighted = read @ self.inverse / self.detection
        total = weighted.sum(axis=-1)[..., None, None]
        k = len(self.detection)
        kept = np.eye(k) - np.ones((k, 1)) * (weighted / weighted.sum(axis=-1, keepdims=True))[..., None, :]
        derivative: FloatArray = self.inverse / self.detection @ kept / total
        return derivative


@dataclass(frozen=True)
class Distance(Measure):
    """How far the shares of all prompts together are from a centre. `terms` are images by class, `[R, P, K]`.

    Attributes:
        centre: `[K]` where the distance is 0.
        distance: `[..., K]` shares to `[...]`, at least 0 and growing along every ray from the centre.
        inversion: Turns shares read into true shares; None leaves them.
        share_loading: `[R, K, L]` as `loading`, of the true shares.
        sign: -1 where the value is less the further away, as entropy: the value is `distance` of opposite sign.
    """

    centre: FloatArray = field(default_factory=lambda: NOTHING)
    distance: Statistic = class_shares
    inversion: Inversion | None = None
    share_loading: FloatArray | None = None
    sign: float = 1.0

    def interval(self, config: EvaluationConfig) -> Ends:
        """Around the estimate that noise does not push up, see `intervals.distance_interval`."""
        draws = (config.seed, config.n_bootstrap)
        ends = distance_interval(self._found(), covariance([self]), self.degrees, config.confidence, draws)
        return _sorted(self.sign * ends[0], self.sign * ends[1])

    def change_interval(self, reference: Measure, config: EvaluationConfig) -> Ends:
        """See `intervals.difference_interval`."""
        if not isinstance(reference, Distance):
            raise TypeError(f"{self.metric} cannot be compared with a {type(reference).__name__}")
        both, few = covariance([reference, self]), min(self.degrees, reference.degrees)
        draws = (config.seed, config.n_bootstrap)
        ends = difference_interval(reference._found(), self._found(), both, few, config.confidence, draws)
        return _sorted(self.sign * ends[0], self.sign * ends[1])

    def shares(self, sums: FloatArray) -> FloatArray:
        """`[..., K]` images by class to shares, turned into true ones if there is an `inversion`."""
        shares = class_shares(sums)
        return shares if self.inversion is None else self.inversion.true_shares(shares)

    def _found(self) -> Found:
        images = self._images()
        return Found(
            self.shares(images), self.centre, lambda shares: self.distance(shares).mean(axis=-1), images.sum(axis=-1)
        )

    def _images(self) -> FloatArray:
        """`[R, K]` images by class, were all of equal weight."""
        sums = self.terms.sum(axis=1)
        return class_shares(sums) * self.effective[:, None] if len(self.effective) else sums

    def _parts(self) -> FloatArray:
        """`[P, R * K]` contributions to the shares."""
        return jackknife(self.terms, lambda sums: self.shares(sums).reshape(len(sums), -1))

    def _lacking(self) -> FloatArray:
        """`[R * K, R * K]` what their covariance lacks of that of images drawn independently, which is the least."""
        n_replicates, _, k = self.terms.shape
        parts = jackknife(self.terms, lambda sums: class_shares(sums).reshape(len(sums), -1))
        lacking = np.zeros((n_replicates * k, n_replicates * k))
        for replicate, counts in enumerate(self._images()):
            block = slice(replicate * k, (replicate + 1) * k)
            least = _independent(counts)
            part = max(0.0, 1.0 - float((parts[:, block] ** 2).sum() / np.trace(least)))
            turn = np.eye(k) if self.inversion is None else self.inversion.derivative(class_shares(counts))
            lacking[block, block] = part * (turn.T @ least @ turn)
        return lacking


def covariance(measures: Sequence[Distance]) -> FloatArray:
    """Of the shares behind measures on the same prompts, one below the other, `[N, N]`."""
    parts = np.concatenate([measure._parts() for measure in measures], axis=1)
    total: FloatArray = parts.T @ parts
    start = 0
    for measure in measures:
        lacking = measure._lacking()
        block = slice(start, start + len(lacking))
        total[block, block] += lacking
        start += len(lacking)
    moved = [m.share_loading.reshape(-1, m.share_loading.shape[-1]) for m in measures if m.share_loading is not None]
    if len(moved) == len(measures):
        loading = np.concatenate(moved)
        total += loading @ loading.T
    return total


def _independent(counts: FloatArray) -> FloatArray:
    """Covariance of the shares of independent images; half an image more a class, so that none is certain."""
    total = counts.sum()
    shares = (counts + 0.5) / (total + len(counts) / 2)
    covariance: FloatArray = (np.diag(shares) - np.outer(shares, shares)) / total
    return covariance


def _sorted(one: float, other: float) -> Ends:
    return min(one, other), max(one, other)
