"""Preferences between two images made elsewhere: which comparisons count."""

import math

from popalign_core.models.pixels import MISSING, TWICE

PREFERRED_SIDE = {1.0: 0, 0.0: 1}
"""Pick-a-Pic's `label_0` -> which of the two images is preferred."""

TIE = 0.5


def pair_fault(caption: str | None, label: float | None, images: tuple[bytes | None, bytes | None]) -> str | None:
    """Why a comparison cannot become a preference, as far as can be told without decoding its images.

    Args:
        caption: What both images were made for.
        label: 1.0 when image 0 is preferred, 0.0 when image 1 is, 0.5 for a tie, None when there is no answer.
        images: Encoded.

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
    if not all(images):
        return MISSING
    return TWICE if images[0] == images[1] else None
