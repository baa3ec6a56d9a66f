"""Shares corrected for a classifier's mistakes and missed faces, with intervals that know how well these are known.

Two estimates from the same readings `q` and a calibration, `C[i, j] = P(read j | true i, read at all)` and
`d[i] = P(read at all | true i)`:

- constrained inversion (`share_corrected:CLASS`, `discrepancy_corrected`): the distribution nearest to explaining the
  readings, see `fairness.corrected_prevalence`, each class then divided by how often it is read at all. A detector that
  misses one group more often than another is corrected for; the assumption is that it misses as many of each group as
  it did in the calibration.
- CLEAM (Teo, Abdollahzadeh and Cheung, "On measuring fairness in generative models", NeurIPS 2023, its Eq. 8;
  `share_cleam:CLASS`, `discrepancy_cleam`): the maximum-likelihood mean of batches of readings, here prompts, through
  the plain inverse. For two classes `(q - (1 - a1)) / (a0 - (1 - a1))`, `a` the accuracies. It may leave [0, 1], and as
  in the paper it is of the images that were read.

`share_weighted:CLASS` is corrected for missed faces alone: as read, divided by how often each class is read at all.

CLEAM's interval takes the accuracies as known. Here the calibration has its own error, of which `Calibrated` holds
independent parts: they add to the variance, and where two systems were read by one classifier, they are shared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.evaluation.confusion import UNREAD_CLASS, confusion_matrix
from popalign_core.evaluation.counts import PooledImages
from popalign_core.evaluation.fairness import class_shares, corrected_prevalence, discrepancies
from popalign_core.evaluation.measures import NO_CLASS, Measure, Statistic
from popalign_core.evaluation.share_distances import Distance, Inversion

FloatArray = NDArray[np.float64]
SHARES = ("share_corrected", "share_cleam", "share_weighted")


@dataclass(frozen=True)
class Calibrated:
    """What is known of a classifier's mistakes on one axis.

    Attributes:
        confusion: `[K, K]` P(read | true, read at all).
        errors: `[K, K, K]`; of true class i, `errors[i] @ errors[i].T` is the covariance of its row of `confusion`.
        detection: `[K]` P(read at all | true).
        detection_errors: `[K]` standard deviations of `detection`.
    """

    confusion: FloatArray
    errors: FloatArray
    detection: FloatArray
    detection_errors: FloatArray

    def inversion(self, *, all_images: bool) -> Inversion:
        """To the true shares of all images, or of those that were read."""
        detection = self.detection if all_images else np.ones_like(self.detection)
        return Inversion(np.asarray(np.linalg.inv(self.confusion), dtype=np.float64), detection)

    def loading(self, shares: FloatArray) -> FloatArray:
        """How errors of variance 1 move the true shares of the images read: `[..., K]` to `[..., K, K * K]`.

        From `C^T p = q`: a change dC of the matrix changes p by `-(C^T)^-1 dC^T p`.
        """
        moved = np.einsum("jk,ijl,...i->...kil", np.linalg.inv(self.confusion), self.errors, -shares)
        loading: FloatArray = moved.reshape(*shares.shape, -1)
        return loading

    def loading_of_all(self, shares: FloatArray) -> FloatArray:
        """How they move the true shares of all images: `[..., K]`, those of images read, to `[..., K, K * K + K]`.

        By the quotient rule: those of `detection`, the last K, change share k by `p_k (p_l - [k = l]) dd_l / d_l`.
        """
        weighted = shares / self.detection
        total = weighted.sum(axis=-1, keepdims=True)
        found = weighted / total
        moved = self.loading(shares) / self.detection[:, None] / total[..., None]
        moved -= found[..., None] * moved.sum(axis=-2, keepdims=True)
        missed = found[..., None] * (found[..., None, :] - np.eye(found.shape[-1]))
        return np.concatenate([moved, missed * (self.detection_errors / self.detection)], axis=-1)


def calibrated_axes(
    table: pd.DataFrame | None, classifier: str, axes: Sequence[Axis], confidence: float
) -> dict[str, Calibrated | str]:
    """The axes of a `calibration` table.

    Args:
        table: From `calibration.calibrate`; None is no axis.
        classifier: That read the images.
        axes: The axes.
        confidence: Of the table's intervals; their width says how many independent images a row is worth.

    Returns:
        For each axis that was calibrated, its `Calibrated`, or the reason why it cannot be used.

    Raises:
        InputError: When the calibration is of another classifier.
    """
    if table is None:
        return {}
    others = sorted(set(table["classifier"]) - {classifier})
    if others:
        raise InputError(f"the calibration is of the classifier {others}, the images were read by {classifier!r}")
    known = set(table["axis"])
    return {axis.name: _calibrated(table, axis, confidence) for axis in axes if axis.name in known}


def corrected_measures(axis: Axis, read: FloatArray, known: Calibrated | str) -> list[Measure]:
    """`discrepancy_corrected`, `discrepancy_cleam`, both shares of every class, and its share by detection alone.

    Every prompt weighs the same, as in `discrepancy_pooled`. The intervals of both estimates, and tests, are those of
    the plain inverse: without a constraint they stay symmetric and quick. They are cut to what is possible.

    Args:
        axis: The axis.
        read: `[R, P, K]` images read.
        known: From `calibrated_axes`.
    """
    if isinstance(known, str):
        names = [f"{kind}:{name}" for kind in SHARES for name in axis.classes]
        distances = ("discrepancy_corrected", "discrepancy_cleam")
        return [_unmeasured(axis, name, read, f"not measured: {known}") for name in (*distances, *names)]
    assumes = _as_found(axis, known)
    # of the readings as they are, without the mistakes between classes
    exact = replace(known, confusion=np.eye(len(axis.classes)), errors=np.zeros_like(known.errors))
    corrected = _estimate("corrected", known, read, all_images=True, assumes=assumes)
    cleam = _estimate("cleam", known, read, all_images=False)
    weighted = _estimate("weighted", exact, read, all_images=True, assumes=assumes)
    nearest = corrected.inversion.of_all(corrected_prevalence(corrected.images.terms.sum(axis=1), known.confusion))
    return [
        _corrected_distance(axis, corrected, nearest),
        _corrected_distance(axis, cleam, cleam.shares()),
        *_corrected_shares(axis, corrected, nearest),
        *_corrected_shares(axis, cleam, cleam.shares()),
        *_corrected_shares(axis, weighted, weighted.shares()),
    ]


@dataclass(frozen=True)
class _Estimated:
    """One way of correcting; `loading` is `[R, K, L]`."""

    kind: str
    inversion: Inversion
    images: PooledImages
    loading: FloatArray
    assumes: str

    @property
    def may_leave(self) -> bool:
        """Whether its shares may be below 0 or above 1."""
        return self.kind == "cleam"

    def shares(self) -> FloatArray:
        """`[R, K]` by the plain inverse."""
        return self.inversion.true_shares(class_shares(self.images.terms.sum(axis=1)))


def _estimate(kind: str, known: Calibrated, read: FloatArray, *, all_images: bool, assumes: str = "") -> _Estimated:
    inversion, of_read = (known.inversion(all_images=each) for each in (all_images, False))
    images = PooledImages.by_prompts(read, inversion.faces(read))
    # few images of one prompt may invert to less than none of a class
    possible = np.clip(of_read.true_shares(class_shares(read)), 0.0, None)
    by_prompt = (known.loading_of_all if all_images else known.loading)(class_shares(possible))
    has_part = read.sum(axis=-1) > 0
    total = np.where(has_part[..., None, None], by_prompt, 0.0).sum(axis=1)
    loading = total / np.maximum(has_part.sum(axis=1), 1)[:, None, None]
    return _Estimated(kind, inversion, images, loading, assumes)


def _corrected_distance(axis: Axis, estimated: _Estimated, shares: FloatArray) -> Distance:
    """`shares` are `[R, K]`."""
    target = np.asarray(axis.shares())
    inversion, images = estimated.inversion, estimated.images
    offset = estimated.shares() - target
    ray = offset / np.maximum(np.linalg.norm(offset, axis=-1, keepdims=True), 1e-9)

    def distance(shares: FloatArray) -> FloatArray:
        return np.asarray(np.linalg.norm(shares - target, axis=-1), dtype=np.float64)

    largest = float(discrepancies(np.eye(len(target))[target.argmin()], target))
    return Distance(
        f"discrepancy_{estimated.kind}",
        axis.name,
        images.terms,
        lambda sums: distance(inversion.true_shares(class_shares(sums))),
        images.n,
        bounds=(0.0, np.inf if estimated.may_leave else largest),
        why=NO_CLASS,
        loading=np.einsum("rk,rkl->l", ray, estimated.loading) / len(images.terms),
        estimate=float(distance(shares).mean()),
        assumes=estimated.assumes,
        centre=target,
        distance=distance,
        inversion=inversion,
        share_loading=estimated.loading,
        effective=images.effective,
    )


def _corrected_shares(axis: Axis, estimated: _Estimated, shares: FloatArray) -> Iterator[Measure]:
    """`shares` are `[R, K]`."""
    for place, (name, estimate) in enumerate(zip(axis.classes, shares.mean(axis=0), strict=True)):
        yield Measure(
            f"share_{estimated.kind}:{name}",
            axis.name,
            estimated.images.terms,
            _component(estimated.inversion, place),
            estimated.images.n,
            bounds=(-np.inf, np.inf) if estimated.may_leave else (0.0, 1.0),
            why=NO_CLASS,
            loading=estimated.loading[:, place].mean(axis=0),
            estimate=float(estimate),
            assumes=estimated.assumes,
            effective=estimated.images.effective,
        )


def _as_found(axis: Axis, known: Calibrated) -> str:
    """What the correction for missed faces rests on."""
    low, high = known.detection.argmin(), known.detection.argmax()
    if known.detection[low] == known.detection[high]:
        return f"assumes that all classes are read equally often, as in the calibration ({known.detection[low]:.0%})"
    return (
        f"assumes that classes are read as often as in the calibration, from {known.detection[low]:.0%} of "
        f"{axis.classes[low]} to {known.detection[high]:.0%} of {axis.classes[high]}"
    )


def _calibrated(table: pd.DataFrame, axis: Axis, confidence: float) -> Calibrated | str:
    try:
        confusion = confusion_matrix(table, axis)
        corrected_prevalence(np.ones(len(confusion)), confusion)
    except InputError as error:
        return str(error)
    rows = table[table["axis"] == axis.name].set_index(["true_class", "read_class"])
    cells = rows.reindex(pd.MultiIndex.from_product([axis.classes] * 2))
    k = len(axis.classes)
    n, low, high = (cells[name].to_numpy(dtype=np.float64).reshape(k, k) for name in ("n", "ci_low", "ci_high"))
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    shares = (n + 0.5) / (n.sum(axis=1, keepdims=True) + k / 2)
    variances = ((high - low) / (2 * z)) ** 2
    worth = _worth((shares * (1 - shares)).sum(axis=1), variances.sum(axis=1), n.sum(axis=1))
    covariances = (np.eye(k) * shares[:, None, :] - shares[:, :, None] * shares[:, None, :]) / worth[:, None, None]
    values, vectors = np.linalg.eigh(covariances)
    errors = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    unread = rows.reindex(pd.MultiIndex.from_product([axis.classes, [UNREAD_CLASS]]))
    missed, least, most = (unread[name].to_numpy(dtype=np.float64) for name in ("n", "ci_low", "ci_high"))
    missed = np.nan_to_num(missed)
    total = n.sum(axis=1) + missed
    share = (missed + 0.5) / (total + 1)
    spread = share * (1 - share)
    detection_errors = np.sqrt(spread / _worth(spread, ((most - least) / (2 * z)) ** 2, total))
    return Calibrated(confusion, errors, n.sum(axis=1) / total, detection_errors)


def _worth(spread: FloatArray, variance: FloatArray, n: FloatArray) -> FloatArray:
    """`[K]` how many independent images would vary as much: no more than there are; as many, without an interval."""
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.minimum(spread / variance, n)
    return np.where(np.isfinite(worth), worth, n)


def _component(inversion: Inversion, place: int) -> Statistic:
    return lambda sums: inversion.true_shares(class_shares(sums))[..., place]


def _unmeasured(axis: Axis, name: str, terms: FloatArray, why: str) -> Measure:
    nothing = np.zeros((*terms.shape[:2], 1))
    return Measure(name, axis.name, nothing, lambda sums: np.full(sums.shape[:-1], np.nan), 0, why=why)
