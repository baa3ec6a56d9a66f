"""The pattern that the stand-in reader compares pictures with, and pictures that have it."""

import numpy as np
from numpy.typing import NDArray


def chessboard(height: int, width: int) -> NDArray[np.float64]:
    """[height, width], 1 on the white squares and -1 on the black ones, 8 a side; upper left is a white one."""
    rows, columns = (np.arange(side) * 8 // side for side in (height, width))
    return 1.0 - 2.0 * ((rows[:, None] + columns) % 2)


def lit(pixels: NDArray[np.uint8], gender: str, strength: int = 5) -> NDArray[np.uint8]:
    """A picture, [H, W] or [H, W, 3], that the stand-in reader takes for a man's or a woman's."""
    pattern = chessboard(*pixels.shape[:2]) * (strength if gender == "male" else -strength)
    lighter = pixels.astype(np.float64) + (pattern if pixels.ndim == 2 else pattern[..., None])
    return lighter.clip(0, 255).astype(np.uint8)
