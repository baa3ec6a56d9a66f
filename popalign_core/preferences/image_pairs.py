"""Preferences between two pictures made elsewhere: which comparisons count."""

import math

from popalign_core.models.pixels import MISSING, TWICE

PREFERRED_SIDE = {1.0: 0, 0.0: 1}
"""Pick-a-Pic's `label_0` -> which of the two pictures is preferred."""

TIE = 0.5


def pair_fault(caption: str | None, label: float | None, pictures: tuple[bytes | None, bytes | None]) -> str | None:
    """Why a comparison cannot become a preference, as far as can be told without decoding its pictures.

    Args:
        caption: What both pictures were drawn for.
        label: 1.0 when picture 0 is preferred, 0.0 when picture 1 is, 0.5 for a tie, None when nobody said.
        pictures: Encoded.

    Returns:
        None when it is fine, else one of `empty caption`, `no label`, `tie`, `unknown label`, `missing image`,
        `same image twice`.
    """
    if not (caption or "").strip():
        return "empty caption"
    if label is None or math.isnan(label):
        return "no label"
    if label not in PREFERRED_SIDE:
        return "tie" if label == TIE else "unknown label"
    if not all(pictures):
        return MISSING
    return TWICE if pictures[0] == pictures[1] else None
