"""Pictures made elsewhere, brought to the model's size."""

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# Why a picture that was given cannot be used, whatever it was given for.
MISSING = "missing image"
TWICE = "same image twice"
UNDECODABLE = "undecodable image"

# What PIL raises for bytes that are no picture, or one that is cut off, damaged or absurdly large.
_BAD_PICTURE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


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
