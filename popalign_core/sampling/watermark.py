"""SDXL's invisible watermark: 48 bits in the colour of an image, as the stock pipeline embeds them.

The scheme is `dwtDct` of the package invisible-watermark (MIT), which diffusers calls. It is written out here because
the package requires opencv-python, whose files overwrite those of the OpenCV that is installed.
"""

from typing import TYPE_CHECKING

import numpy as np

from popalign_core.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

WATERMARK_SIZE = 256
"""Pixels each way that an image must have; the published encoder embeds nothing in a smaller one."""
WATERMARK_BITS = tuple(int(bit) for bit in f"{0b101100111110110010010000011110111011000110011110:048b}")
"""Of Stable Diffusion XL."""
_STEP = 36.0
_BLOCK = 4
_HALF = np.float32(np.sqrt(0.5))


def watermark(pixels_u8: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """Images with SDXL's watermark.

    Its bits come back whole from images with grain; of very smooth ones the rounding to 8 bits takes some.

    Args:
        pixels_u8: [N, H, W, 3] uint8.

    Returns:
        [N, H, W, 3] uint8, a copy.

    Raises:
        ConfigError: When the images are too small to hold it.
    """
    check_watermark(width=pixels_u8.shape[2], height=pixels_u8.shape[1])
    return np.stack([_mark(image) for image in pixels_u8])


def check_watermark(*, width: int, height: int) -> None:
    """Refuse what `watermark` could not do, before any image is sampled.

    Raises:
        ConfigError: As `watermark`.
    """
    if min(width, height) < WATERMARK_SIZE:
        raise ConfigError(
            f"{width} x {height} px is too small for the watermark, which needs {WATERMARK_SIZE} px each way; "
            "sample larger images, or none with a watermark"
        )


def _mark(image_u8: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    import cv2

    yuv = np.asarray(cv2.cvtColor(image_u8.astype(np.float32), cv2.COLOR_RGB2YUV), dtype=np.float32)
    height, width = (side // _BLOCK * _BLOCK for side in image_u8.shape[:2])
    average, across, down, diagonal = _haar(yuv[:height, :width, 1])
    # the published encoder puts the two details back in each other's place
    yuv[:height, :width, 1] = _inverse_haar(_embed(average), down, across, diagonal)
    found: NDArray[np.uint8] = cv2.cvtColor(yuv, cv2.COLOR_YUV2RGB).round().clip(0, 255).astype(np.uint8)
    return found


def _embed(average: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """The bits in turn, one in each 4 x 4 block: its largest value (but for the first) goes to 1/4 or 3/4 of a step."""
    rows, columns = (side // _BLOCK for side in average.shape)
    inside = average[: rows * _BLOCK, : columns * _BLOCK]
    blocks = inside.reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2).reshape(-1, _BLOCK * _BLOCK)
    each = np.arange(len(blocks))
    largest = np.abs(blocks[:, 1:]).argmax(axis=1) + 1
    value = blocks[each, largest]
    bits = np.resize(np.array(WATERMARK_BITS, dtype=np.float32), len(blocks))
    steps = (np.abs(value) // _STEP + 0.25 + 0.5 * bits) * _STEP
    blocks[each, largest] = np.where(value >= 0, steps, -steps)
    marked = average.copy()
    whole = blocks.reshape(rows, columns, _BLOCK, _BLOCK).swapaxes(1, 2)
    marked[: rows * _BLOCK, : columns * _BLOCK] = whole.reshape(inside.shape)
    return marked


def _haar(plane: "NDArray[np.float32]") -> "tuple[NDArray[np.float32], ...]":
    """One level of the Haar transform: average, and details across, down and on the diagonals, each of half a side."""
    plane = plane * _HALF
    low, high = (plane[0::2] + plane[1::2]) * _HALF, (plane[0::2] - plane[1::2]) * _HALF
    return (
        low[:, 0::2] + low[:, 1::2],
        low[:, 0::2] - low[:, 1::2],
        high[:, 0::2] + high[:, 1::2],
        high[:, 0::2] - high[:, 1::2],
    )


def _inverse_haar(
    average: "NDArray[np.float32]",
    across: "NDArray[np.float32]",
    down: "NDArray[np.float32]",
    diagonal: "NDArray[np.float32]",
) -> "NDArray[np.float32]":
    plane = np.empty((2 * average.shape[0], 2 * average.shape[1]), dtype=np.float32)
    for row, (left, right) in enumerate(((average + down, across + diagonal), (average - down, across - diagonal))):
        plane[row::2, 0::2], plane[row::2, 1::2] = (left + right) / 2, (left - right) / 2
    return plane
