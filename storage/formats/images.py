"""PNG bytes, the image column (`image` is {bytes, path}, which HF `datasets` reads as PIL images), and which files are
images.
"""

import io
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from popalign_core.errors import InputError, StoreError

_OTHERS: Final = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that PIL knows but leaves to other programs."""
_PLUGINS: Final = {".heic", ".heif", ".jxl"}
"""Images that PIL reads with plugins alone."""


def encode_png(pixels_u8: NDArray[np.uint8]) -> bytes:
    """An image as PNG: lossless, and equal pixels give equal bytes.

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
    """The pixels [H, W, 3] uint8, RGB, of an image.

    Raises:
        StoreError: When the bytes are no image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise StoreError(f"{len(data)} bytes are not a readable image ({error}); run `popalign verify`") from error


def image_column(images: Iterable[bytes | None]) -> list[dict[str, Any] | None]:
    """Cells of the column `image` for PNG bytes; empty where there is no image."""
    return [None if data is None else {"bytes": data, "path": None} for data in images]


def is_image_file(path: Path) -> bool:
    """Whether a file is an image: by its content, whatever its name, or by its name, whatever became of its content.

    Raises:
        InputError: When it cannot be read.
    """
    if is_named_like_image(path):
        return True
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"the file {path} cannot be read ({error.strerror}); fix or remove it") from error
    try:
        with file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and odd metadata
            with Image.open(file, formats=_formats()):
                return True
    except UnidentifiedImageError:
        return False
    except Exception:  # noqa: BLE001 (each of PIL's formats has errors of its own; it knew one of them and stumbled)
        return True


def is_named_like_image(path: Path) -> bool:
    """Whether a file's name ends as images do that PIL reads, by itself or with plugins."""
    return path.suffix.lower() in _suffixes()


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _OTHERS)


@cache
def _suffixes() -> frozenset[str]:
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in _formats()) | _PLUGINS
