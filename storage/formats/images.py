"""PNG bytes and the image column: `image` is {bytes, path}, which HF `datasets` reads as PIL images."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from popalign_core.errors import StoreError


def encode_png(pixels_u8: NDArray[np.uint8]) -> bytes:
    """A picture as PNG: lossless, and equal pixels give equal bytes.

    Args:
        pixels_u8: [H, W, 3] uint8, RGB.

    Raises:
        StoreError: For another shape or type.
    """
    if pixels_u8.ndim != 3 or pixels_u8.shape[2] != 3 or pixels_u8.dtype != np.uint8:
        raise StoreError(f"cannot make a PNG of {pixels_u8.dtype} {list(pixels_u8.shape)}; give uint8 [H, W, 3]")
    sink = io.BytesIO()
    Image.fromarray(pixels_u8).save(sink, format="PNG")
    return sink.getvalue()


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """The pixels [H, W, 3] uint8, RGB, of a picture.

    Raises:
        StoreError: When the bytes are no picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise StoreError(f"{len(data)} bytes are not a readable picture ({error}); run `popalign verify`") from error


def image_column(pictures: Iterable[bytes | None]) -> list[dict[str, Any] | None]:
    """Cells of the column `image` for PNG bytes; empty where there is no picture."""
    return [None if data is None else {"bytes": data, "path": None} for data in pictures]
