"""Which of several points another one beats: the fairness/quality front."""

import numpy as np
from numpy.typing import ArrayLike


def dominators(scores: ArrayLike) -> list[int | None]:
    """For each point the first other that is nowhere less and somewhere more; None for those of the Pareto front.

    Args:
        scores: `[N, M]`, more is better in every column. A point with a NaN dominates none and is dominated by none.
    """
    points = np.asarray(scores, dtype=np.float64)
    no_less = (points[None] >= points[:, None]).all(axis=-1)
    more = (points[None] > points[:, None]).any(axis=-1)
    beaten = np.asarray(no_less & more)
    return [int(row.argmax()) if row.any() else None for row in beaten]
