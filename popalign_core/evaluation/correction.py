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
from popalign_core.evaluation.fairness import class_shares, corrected_prevalence, discrepancies
from popalign_core.evaluation.measures import NO_FACE, Measure, Statistic
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
        """How errors of variance 1 move the true shares of the images read: `[R, K]` to `[R, K, K * K]`.

        From `C^T p = q`: a change dC of the matrix changes p by `-(C^T)^-1 dC^T p`.
        """
        moved = np.einsum("jk,ijl,ri->rkil", np.linalg.inv(self.confusion), self.errors, -shares)
        loading: FloatArray = moved.reshape(*shares.shape, -1)
        return loading

    def loading_of_all(self, shares: FloatArray) -> FloatArray:
        """How they move the true shares of all images: `[R, K]`, those of the images read, to `[R, K, K * K + K]`.

        By the quotient rule: those of `detection`, the last K, change share k by `p_k (p_l - [k = l]) dd_l / d_l`.
        """
        weighted = shares / self.detection
        total = weighted.sum(axis=-1, keepdims=True)
        found = weighted / total
        moved = self.loading(shares) / self.detection[:, None] / total[..., None]
        moved -= found[..., None] * moved.sum(axis=1, keepdims=True)
        missed = found[..., None] * (found[:, None, :] - np.eye(found.shape[-1]))
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


def corrected_measures(axis: Axis, terms: FloatArray, known: Calibrated | str) -> list[Measure]:
    """`discrepancy_corrected`, `discrepancy_cleam`, both shares of every class, and its share by detection alone.

    The intervals of both estimates, and tests, are those of the plain inverse: without a constraint they stay
    symmetric and quick. They are cut to what is possible.

    Args:
        axis: The axis.
        terms: `[R, P, K]` images read.
        known: From `calibrated_axes`.
    """
    if isinstance(known, str):
        names = [f"{kind}:{name}" for kind in SHARES for name in axis.classes]
        distances = ("discrepancy_corrected", "discrepancy_cleam")
        return [_unmeasured(axis, name, terms, f"not measured: {known}") for name in (*distances, *names)]
    sums = terms.sum(axis=1)
    of_read, of_all = known.inversion(all_images=False), known.inversion(all_images=True)
    plain = of_read.true_shares(class_shares(sums))
    corrected = _Estimated("corrected", of_all, known.loading_of_all(plain), _as_found(axis, known))
    cleam = _Estimated("cleam", of_read, known.loading(plain), "")
    # of the readings as they are, without the mistakes between classes
    exact = replace(known, confusion=np.eye(len(axis.classes)), errors=np.zeros_like(known.errors))
    weighted = _Estimated(
        "weighted", exact.inversion(all_images=True), exact.loading_of_all(class_shares(sums)), corrected.assumes
    )
    nearest = of_all.of_all(corrected_prevalence(sums, known.confusion))
    return [
        _corrected_distance(axis, terms, corrected, nearest),
        _corrected_distance(axis, terms, cleam, plain),
        *_corrected_shares(axis, terms, corrected, nearest),
        *_corrected_shares(axis, terms, cleam, plain),
        *_corrected_shares(axis, terms, weighted, weighted.inversion.true_shares(class_shares(sums))),
    ]


@dataclass(frozen=True)
class _Estimated:
    """One way of correcting; `loading` is `[R, K, L]`."""

    kind: str
    inversion: Inversion
    loading: FloatArray
    assumes: str

    @property
    def may_leave(self) -> bool:
        """Whether its shares may be below 0 or above 1."""
        return self.kind == "cleam"


def _corrected_distance(axis: Axis, terms: FloatArray, estimated: _Estimated, shares: FloatArray) -> Distance:
    """`shares` are `[R, K]`."""
    target = np.asarray(axis.shares())
    inversion = estimated.inversion
    offset = inversion.true_shares(class_shares(terms.sum(axis=1))) - target
    ray = offset / np.maximum(np.linalg.norm(offset, axis=-1, keepdims=True), 1e-9)

    def distance(shares: FloatArray) -> FloatArray:
        return np.asarray(np.linalg.norm(shares - target, axis=-1), dtype=np.float64)

    largest = float(discrepancies(np.eye(len(target))[target.argmin()], target))
    return Distance(
        f"discrepancy_{estimated.kind}",
        axis.name,
        terms,
        lambda sums: distance(inversion.true_shares(class_shares(sums))),
        int(terms.sum()),
        bounds=(0.0, np.inf if estimated.may_leave else largest),
        why=NO_FACE,
        loading=np.einsum("rk,rkl->l", ray, estimated.loading) / len(terms),
        estimate=float(distance(shares).mean()),
        assumes=estimated.assumes,
        centre=target,
        distance=distance,
        inversion=inversion,
        share_loading=estimated.loading,
    )


def _corrected_shares(axis: Axis, terms: FloatArray, estimated: _Estimated, shares: FloatArray) -> Iterator[Measure]:
    """`shares` are `[R, K]`."""
    for place, (name, estimate) in enumerate(zip(axis.classes, shares.mean(axis=0), strict=True)):
        yield Measure(
            f"share_{estimated.kind}:{name}",
            axis.name,
            terms,
            _component(estimated.inversion, place),
            int(terms.sum()),
            bounds=(-np.inf, np.inf) if estimated.may_leave else (0.0, 1.0),
            why=NO_FACE,
            loading=estimated.loading[:, place].mean(axis=0),
            estimate=float(estimate),
            assumes=estimated.assumes,
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
