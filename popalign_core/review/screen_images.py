"""Images as a rater sees them: sized for a screen, and spoiled ones for checks."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

MEDIA_TYPE = "image/webp"
_QUALITY = 92
_LOSSLESS_SIDE = 128
"""px; below, compression would show, and costs nothing to leave out."""


def encode_for_screen(pixels_u8: NDArray[np.uint8], max_side: int) -> bytes:
    """An image [H, W, 3] uint8 as WebP, its longer side at most `max_side` px; never enlarged."""
    image = Image.fromarray(pixels_u8)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=_QUALITY, lossless=max(image.size) <= _LOSSLESS_SIDE)
    return sink.getvalue()


def spoil(pixels_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image blurred so much that it is clearly the worse one; shape and type stay."""
    radius = max(pixels_u8.shape[:2]) / 12
    return np.asarray(Image.fromarray(pixels_u8).filter(ImageFilter.GaussianBlur(radius)))
