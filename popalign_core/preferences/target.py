"""How far a set of images is from the population that is wanted."""

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from popalign_core.config import Axis
from popalign_core.evaluation.fairness import discrepancies

Cell = tuple[str, ...]
"""One class of each axis, in the order of the axes."""

TargetOf = Literal["joint", "marginal"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def target_joint(axes: Sequence[Axis]) -> dict[Cell, float]:
    """Share of each cell when the axes are independent: the product of their targets."""
    shares = [dict(zip(axis.classes, axis.shares(), strict=True)) for axis in axes]
    cells = product(*(axis.classes for axis in axes))
    return {cell: float(np.prod([share[name] for share, name in zip(shares, cell, strict=True)])) for cell in cells}


class Target:
    """The wanted population. Sets are counts `[..., C]` over the cells: all products of the axes' classes.

    Args:
        axes: The attributes with their targets.

    Attributes:
        cells: In the order of the counts.
        joint: [C] float64, their shares.
        shares: [K] float64 an axis, in the order of its classes.
        class_of: [C] int64 an axis: the class of each cell.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        joint = target_joint(axes)
        self.axes = tuple(axes)
        self.cells = tuple(joint)
        self.joint: FloatArray = np.array(list(joint.values()))
        self.shares: list[FloatArray] = [np.array(axis.shares()) for axis in axes]
        classes = np.indices([len(axis.classes) for axis in axes]).reshape(len(axes), -1)
        self.class_of: list[IntArray] = list(classes.astype(np.int64))

    def count(self, cells: IntArray) -> IntArray:
        """Counts [..., C] of sets [..., N] of cells."""
        known = np.arange(len(self.cells))
        rows = [np.bincount(row, minlength=len(known)) for row in cells.reshape(-1, cells.shape[-1])]
        return np.array(rows, dtype=np.int64).reshape(*cells.shape[:-1], len(known))

    def marginals(self, counts: IntArray) -> list[IntArray]:
        """Counts [..., K] over the classes of each axis."""
        return [
            counts @ np.eye(len(shares), dtype=np.int64)[classes]
            for shares, classes in zip(self.shares, self.class_of, strict=True)
        ]

    def discrepancies(self, counts: IntArray) -> FloatArray:
        """[...]: mean over the axes of `|| target - shares ||_2` (Eq. 13), over the axes' fixed class lists."""
        each = [discrepancies(row, shares) for row, shares in zip(self.marginals(counts), self.shares, strict=True)]
        mean: FloatArray = np.stack(each, axis=-1).mean(axis=-1)
        return mean

    def distances(self, counts: IntArray, of: TargetOf) -> FloatArray:
        """[...]: what a strategy makes small: `|| joint - shares ||_2` over the cells, or the discrepancy."""
        return discrepancies(counts, self.joint) if of == "joint" else self.discrepancies(counts)

    def nearest(self, n: int, of: TargetOf) -> float:
        """The smallest distance that any `n` images can have, were there enough of every cell."""
        if of == "joint":
            return float(discrepancies(_quota(self.joint, n), self.joint))
        return float(np.mean([discrepancies(_quota(shares, n), shares) for shares in self.shares]))

    def largest_discrepancy(self) -> float:
        """The largest discrepancy there is: on every axis all images in its least wanted class."""
        worst = [discrepancies(np.eye(len(shares))[int(np.argmin(shares))], shares) for shares in self.shares]
        return float(np.mean(worst))

    def table(self) -> dict[str, float]:
        """Column `target` of a `preferences` table: "axis=class" -> share."""
        return {
            f"{axis.name}={name}": share
            for axis in self.axes
            for name, share in zip(axis.classes, axis.shares(), strict=True)
        }


def _quota(shares: FloatArray, n: int) -> IntArray:
    """Largest remainders: the counts of `n` images nearest to the shares."""
    counts = np.floor(shares * n + 1e-9)
    odd = int(n - counts.sum())
    counts[np.argsort(counts - shares * n, kind="stable")[:odd]] += 1
    return counts.astype(np.int64)
