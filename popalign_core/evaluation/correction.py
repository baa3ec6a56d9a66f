"""Shares corrected for a classifier's mistakes, with intervals that know how well the mistakes are known.

Two estimates from the same readings `q` and confusion matrix `C`, `C[i, j] = P(read j | true i)`:

- constrained inversion (`share_corrected:CLASS`, `discrepancy_corrected`): the distribution nearest to explaining the
  readings, see `fairness.corrected_prevalence`.
- CLEAM (Teo, Abdollahzadeh and Cheung, "On measuring fairness in generative models", NeurIPS 2023, its Eq. 8;
  `share_cleam:CLASS`, `discrepancy_cleam`): the maximum-likelihood mean of batches of readings, here prompts, through
  the plain inverse. For two classes `(q - (1 - a1)) / (a0 - (1 - a1))`, `a` the accuracies. It may leave [0, 1].

CLEAM's interval takes the accuracies as known. Here the confusion matrix has its own error, of which `Calibrated`
holds independent parts: they add to the variance, and where two systems were read by one classifier, they are shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.evaluation.confusion import UNREAD_CLASS, confusion_matrix
from popalign_core.evaluation.fairness import class_shares, corrected_prevalence, discrepancies
from popalign_core.evaluation.measures import NO_FACE, Measure, Statistic
from popalign_core.evaluation.share_distances import Distance

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Calibrated:
    """What is known of a classifier's mistakes on one axis.

    Attributes:
        confusion: `[K, K]` P(read | true).
        errors: `[K, K, K]`; of true class i, `errors[i] @ errors[i].T` is the covariance of its row of `confusion`.
    """

    confusion: FloatArray
    errors: FloatArray

    def loading(self, shares: FloatArray) -> FloatArray:
        """How errors of variance 1 move the true shares: `[R, K]` to `[R, K, K * K]`.

        From `C^T p = q`: a change dC of the matrix changes p by `-(C^T)^-1 dC^T p`.
        """
        moved = np.einsum("jk,ijl,ri->rkil", np.linalg.inv(self.confusion), self.errors, -shares)
        loading: FloatArray = moved.reshape(*shares.shape, -1)
        return loading


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
    """`discrepancy_corrected`, `discrepancy_cleam` and both shares of every class.

    The intervals of both estimates, and tests, are those of the plain inverse: without a constraint they stay
    symmetric and quick. They are cut to what is possible.

    Args:
        axis: The axis.
        terms: `[R, P, K]` images read.
        known: From `calibrated_axes`.
    """
    names = [f"{kind}:{name}" for kind in ("share_corrected", "share_cleam") for name in axis.classes]
    if isinstance(known, str):
        distances = ("discrepancy_corrected", "discrepancy_cleam")
        return [_unmeasured(axis, name, terms, f"not measured: {known}") for name in (*distances, *names)]
    inverse = np.asarray(np.linalg.inv(known.confusion), dtype=np.float64)
    target = np.asarray(axis.shares())
    sums = terms.sum(axis=1)
    plain = class_shares(sums) @ inverse
    nearest = corrected_prevalence(sums, known.confusion)
    loading = known.loading(plain)
    ray = (plain - target) / np.maximum(np.linalg.norm(plain - target, axis=-1, keepdims=True), 1e-9)
    largest = float(discrepancies(np.eye(len(target))[target.argmin()], target))
    n, k = int(terms.sum()), len(target)
    measures: list[Measure] = [
        Distance(
            f"discrepancy_{kind}",
            axis.name,
            terms,
            lambda sums: np.linalg.norm(class_shares(sums) @ inverse - target, axis=-1),
            n,
            bounds=(0.0, largest if kind == "corrected" else np.inf),
            why=NO_FACE,
            loading=np.einsum("rk,rkl->l", ray, loading) / len(sums),
            estimate=float(np.linalg.norm(shares - target, axis=-1).mean()),
            centre=target,
            distance=lambda shares: np.linalg.norm(shares - target, axis=-1),
            inverse=inverse,
            share_loading=loading,
        )
        for kind, shares in (("corrected", nearest), ("cleam", plain))
    ]
    estimates = np.concatenate([nearest.mean(axis=0), plain.mean(axis=0)])
    for place, (name, estimate) in enumerate(zip(names, estimates, strict=True)):
        measures.append(
            Measure(
                name,
                axis.name,
                terms,
                _component(inverse, place % k),
                n,
                bounds=(0.0, 1.0) if place < k else (-np.inf, np.inf),
                why=NO_FACE,
                loading=loading[:, place % k].mean(axis=0),
                estimate=float(estimate),
            )
        )
    return measures


def _calibrated(table: pd.DataFrame, axis: Axis, confidence: float) -> Calibrated | str:
    try:
        confusion = confusion_matrix(table, axis)
        corrected_prevalence(np.ones(len(confusion)), confusion)
    except InputError as error:
        return str(error)
    rows = table[(table["axis"] == axis.name) & (table["read_class"] != UNREAD_CLASS)]
    cells = rows.set_index(["true_class", "read_class"]).reindex(pd.MultiIndex.from_product([axis.classes] * 2))
    k = len(axis.classes)
    n, low, high = (cells[name].to_numpy(dtype=np.float64).reshape(k, k) for name in ("n", "ci_low", "ci_high"))
    shares = (n + 0.5) / (n.sum(axis=1, keepdims=True) + k / 2)
    variances = ((high - low) / (2 * NormalDist().inv_cdf((1 + confidence) / 2))) ** 2
    # a row is worth no more independent images than it has; without an interval, as many
    worth = np.minimum((shares * (1 - shares)).sum(axis=1) / variances.sum(axis=1), n.sum(axis=1))
    worth = np.where(np.isfinite(worth), worth, n.sum(axis=1))
    covariances = (np.eye(k) * shares[:, None, :] - shares[:, :, None] * shares[:, None, :]) / worth[:, None, None]
    values, vectors = np.linalg.eigh(covariances)
    return Calibrated(confusion, vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :])


def _component(inverse: FloatArray, place: int) -> Statistic:
    return lambda sums: (class_shares(sums) @ inverse)[..., place]


def _unmeasured(axis: Axis, name: str, terms: FloatArray, why: str) -> Measure:
    nothing = np.zeros((*terms.shape[:2], 1))
    return Measure(name, axis.name, nothing, lambda sums: np.full(sums.shape[:-1], np.nan), 0, why=why)
