"""Images made elsewhere: any sort that PIL reads, made upright RGB, and brought to the model's size."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# Why an image that was given cannot be used, whatever it was given for.
MISSING = "missing image"
TWICE = "same image twice"
UNDECODABLE = "undecodable image"
TOO_LARGE = "too large image"

_BOMB = (Image.DecompressionBombWarning, Image.DecompressionBombError)


def decode_image(data: bytes) -> tuple[NDArray[np.uint8] | None, str | None]:
    """Decode an image of any sort: turned as its camera says, the first of an animation, 16 bits made 8, what is
    transparent before white.

    Args:
        data: The encoded image, in any format that PIL reads.

    Returns:
        [H, W, 3] uint8 RGB and None; or None and `UNDECODABLE`, or `TOO_LARGE` for what PIL takes for a
        decompression bomb (89 million pixels), which is refused before it is decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image))), None
    except _BOMB:
        return None, TOO_LARGE
    except Exception:  # noqa: BLE001 (for damaged bytes each of PIL's formats has errors of its own)
        return None, UNDECODABLE


def fit_image(data: bytes, width: int, height: int) -> NDArray[np.uint8] | None:
    """An image in the model's size: scaled until its shorter side fits, the middle of the longer one kept.

    Args:
        data: The encoded image, as `decode_image` takes it.
        width: px.
        height: px.

    Returns:
        [height, width, 3] uint8 RGB; None when the bytes are no readable image.
    """
    pixels, _ = decode_image(data)
    if pixels is None:
        return None
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (width, height), Image.Resampling.LANCZOS))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; PIL's own conversion cuts everything above 255 off
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F" and (values := np.asarray(image)).max() <= 1:  # PIL's own takes 1.0 for the darkest grey
        return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:  # as screens show it; the colours below are anything
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
