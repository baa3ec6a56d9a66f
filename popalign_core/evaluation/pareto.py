"""Which of several points another one beats: the fairness/quality front."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dominators(scores: ArrayLike) -> list[int | None]:
    """For each point the first other that is nowhere less and somewhere more; None for those of the Pareto front.

    Args:
        scores: `[N, M]`, more is better in every column. A point with a NaN dominates none and is dominated by none.
    """
    points = np.asarray(scores, dtype=np.float64)
    no_less: NDArray[np.bool_] = np.all(points[None] >= points[:, None], axis=-1)
    more: NDArray[np.bool_] = np.any(points[None] > points[:, None], axis=-1)
    beaten: NDArray[np.bool_] = no_less & more  # [N, N]: the row's point by the column's
    return [int(row.argmax()) if row.any() else None for row in beaten]
