"""What one point of a score is, and between which ends a unit lies."""

import numpy as np

COSINE, PICK, SHARE, COSINE_DISTANCE = "100 x cosine", "cosine x scale", "share", "1 - cosine"

_BOUNDS = {COSINE: (-100.0, 100.0), SHARE: (0.0, 1.0), COSINE_DISTANCE: (0.0, 2.0)}
_NO_BOUNDS = (-np.inf, np.inf)


def unit_bounds(unit: str) -> tuple[float, float]:
    """Least and largest possible value; infinite where the unit has none, or a network may leave its scale."""
    return _BOUNDS.get(unit, _NO_BOUNDS)
