"""The watermark: read back by a decoder of the published scheme, and what the published package makes, by pixel."""

import cv2
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl import watermark as published
from numpy.typing import NDArray

from popalign_core.errors import ConfigError
from popalign_core.sampling.watermark import WATERMARK_BITS, watermark

Pixels = NDArray[np.uint8]
STEP = 36


def foliage(size: int) -> Pixels:
    """Two pictures with fine grain: in smooth ones the rounding to 8 bits takes some of the watermark's bits."""
    coarse = torch.rand((2, 3, size // 2, size // 2), generator=torch.Generator().manual_seed(1))
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0.1, 0.9)
    pixels: Pixels = (fine * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(64, 192, (1, height, width, 3), dtype=np.uint8)


def read_bits(picture: Pixels, n_bits: int) -> list[int]:
    """Block by block, as the published decoder goes: which half of a step the largest value is in, by majority."""
    u = cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2YUV)[:, :, 1]
    average = (u[0::2, 0::2] + u[0::2, 1::2] + u[1::2, 0::2] + u[1::2, 1::2]) / 2
    votes: list[list[bool]] = [[] for _ in range(n_bits)]
    number = 0
    for top in range(0, average.shape[0] - 3, 4):
        for left in range(0, average.shape[1] - 3, 4):
            values = np.abs(average[top : top + 4, left : left + 4].ravel()[1:])
            votes[number % n_bits].append(values.max() % STEP > STEP / 2)
            number += 1
    return [int(np.mean(each) > 0.5) for each in votes]


def test_the_bits_are_those_of_sdxl() -> None:
    assert list(WATERMARK_BITS) == published.WATERMARK_BITS


def test_the_watermark_is_read_back() -> None:
    pixels = foliage(512)
    before, marked = pixels.copy(), watermark(pixels)
    for picture, plain in zip(marked, pixels, strict=True):
        assert read_bits(picture, 48) == list(WATERMARK_BITS)
        assert read_bits(plain, 48) != list(WATERMARK_BITS)
    difference = np.abs(marked.astype(int) - pixels)
    assert (marked.shape, marked.dtype) == (pixels.shape, np.uint8)
    assert 0 < difference.mean() < 10  # of 255
    assert np.array_equal(pixels, before)


def test_a_picture_is_marked_as_invisible_watermark_0_2_0_marks_it() -> None:
    marked = watermark(noise(256, 260))[0].astype(int)
    # blue of the first block and of the last one, from that package by way of diffusers 0.42.1
    first = [[161, 241, 80, 143, 72, 102], [131, 99, 55, 177, 175, 75], [86, 169, 89, 144, 146, 42]]
    last = [[86, 84, 97, 108, 181, 166], [148, 157, 140, 92, 143, 90], [165, 138, 72, 101, 100, 136]]
    np.testing.assert_allclose(marked[:3, :6, 2], first, atol=1)
    np.testing.assert_allclose(marked[252:255, 254:, 2], last, atol=1)


@pytest.mark.parametrize("size", [(256, 256), (259, 270), (300, 512)])
def test_all_pixels_are_those_of_the_published_package(size: tuple[int, int]) -> None:
    pytest.importorskip("imwatermark", reason="needs pip install --no-deps invisible-watermark==0.2.0 PyWavelets")
    pixels = noise(*size)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    theirs = published.StableDiffusionXLWatermarker().apply_watermark(images)
    expected = ((theirs + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    difference = np.abs(watermark(pixels) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4  # rounding


def test_a_watermark_needs_room() -> None:
    with pytest.raises(ConfigError, match="255 x 255 px is too small for the watermark, which needs 256 px"):
        watermark(foliage(255))
