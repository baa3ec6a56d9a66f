"""Preferences between two pictures made elsewhere: which comparisons count, and pictures in the model's size."""

import io
import math
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

PREFERRED_SIDE = {1.0: 0, 0.0: 1}
"""Pick-a-Pic's `label_0` -> which of the two pictures is preferred."""

TIE = 0.5
UNDECODABLE = "undecodable image"

# What PIL raises for bytes that are no picture, or one that is cut off, damaged or absurdly large.
_BAD_PICTURE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


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
        return "missing image"
    return "same image twice" if pictures[0] == pictures[1] else None


def fit_picture(data: bytes, width: int, height: int) -> NDArray[np.uint8] | None:
    """A picture in the model's size: scaled until its shorter side fits, the middle of the longer one kept.

    Args:
        data: The encoded picture, in any format that PIL reads; it is turned as its camera says.
        width: px.
        height: px.

    Returns:
        [height, width, 3] uint8 RGB; None when the bytes are no readable picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except _BAD_PICTURE:
        return None
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))
