"""Images of the embedded world: portraits cut out of their background, marked by occupation, and objects.

The packs (`portraits.parquet`, `things.parquet`) are read once; everything else is drawn from them with a
generator that the caller passes in.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from popalign_core.portraits.occupations import BACKDROPS, COLOURS, HIDDEN_FACE_RATE, Occupation

SIZE = 64
SOURCE_SIZE = 128
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Portrait:
    """One synthetic person.

    Attributes:
        portrait_id: Name in the pack.
        gender: "male" or "female", from the prompt that made the portrait.
        race: Perceived appearance, or None where the pack does not say.
        split: "train" or "holdout", by identity.
        pixels_u8: `[128, 128, 3]` RGB.
        foreground: `[128, 128]` float32 in [0, 1], the person.
    """

    portrait_id: str
    gender: str
    race: str | None
    split: str
    pixels_u8: U8
    foreground: F32


@dataclass(frozen=True)
class Thing:
    """One object: its name and `[128, 128, 4]` RGBA pixels."""

    name: str
    pixels_u8: U8


def to_unit_range(pixels_u8: U8, channels_last: bool = True) -> Tensor:
    """`[B, H, W, 3]` uint8 to `[B, 3, H, W]` float32 in [-1, 1]."""
    images = torch.from_numpy(np.array(pixels_u8)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


def load_portraits(data_dir: Path) -> list[Portrait]:
    """Read the portrait pack and cut every person out of the background.

    Raises:
        FileNotFoundError: When `portraits.parquet` is not in `data_dir`.
    """
    table = pd.read_parquet(_pack(data_dir, "portraits.parquet"))
    portraits = []
    for row in table.to_dict("records"):
        pixels = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
        race = row["race"] if isinstance(row["race"], str) else None
        portraits.append(
            Portrait(row["portrait_id"], row["sex"], race, row["split"], pixels, remove_background(pixels))
        )
    return portraits


def load_things(data_dir: Path) -> list[Thing]:
    """Read the object pack.

    Raises:
        FileNotFoundError: When `things.parquet` is not in `data_dir`.
    """
    table = pd.read_parquet(_pack(data_dir, "things.parquet"))
    return [
        Thing(row["name"], np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGBA")))
        for row in table.to_dict("records")
    ]


def _pack(data_dir: Path, name: str) -> Path:
    path = data_dir / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; see docs/figures.md for the source of the packs")
    return path


def remove_background(pixels_u8: U8) -> F32:
    """Soft mask of the person in an aligned 128 px portrait, by GrabCut seeded with the aligned pose.

    Returns:
        `[128, 128]` float32 in [0, 1].
    """
    mask = np.full((SOURCE_SIZE, SOURCE_SIZE), cv2.GC_PR_BGD, np.uint8)
    cv2.ellipse(mask, (64, 60), (42, 54), 0, 0, 360, cv2.GC_PR_FGD, -1)
    mask[104:, 8:120] = cv2.GC_PR_FGD
    mask[:40, :8] = mask[:40, -8:] = mask[:3] = cv2.GC_BGD
    cv2.ellipse(mask, (64, 63), (27, 40), 0, 0, 360, cv2.GC_FGD, -1)
    mask[112:, 40:88] = cv2.GC_FGD
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    no_box = (0, 0, 0, 0)
    cv2.grabCut(pixels_u8[..., ::-1].copy(), mask, no_box, background, foreground, 6, cv2.GC_INIT_WITH_MASK)
    person = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    person = np.asarray(cv2.morphologyEx(person, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    _, labels = cv2.connectedComponents(person)
    person = (labels == labels[66, 64]).astype(np.uint8)
    person = np.asarray(cv2.morphologyEx(person, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8)), np.uint8)
    return np.asarray(cv2.GaussianBlur(person.astype(np.float32), (0, 0), 1.2))


def draw_portrait(portrait: Portrait, occupation: Occupation, rng: np.random.Generator, *, covered: bool = False) -> U8:
    """One augmented image of a person in the clothing and before the backdrop of an occupation.

    Args:
        portrait: The person.
        occupation: Gives clothing colour, backdrop and cover.
        rng: Source of every random choice.
        covered: Draw the occupation's face cover.

    Returns:
        `[64, 64, 3]` uint8 RGB.
    """
    warp = _random_affine(rng)
    size = (SOURCE_SIZE, SOURCE_SIZE)
    pixels = cv2.warpAffine(portrait.pixels_u8, warp, size, borderMode=cv2.BORDER_REPLICATE)
    alpha = np.asarray(cv2.warpAffine(portrait.foreground, warp, size, borderMode=cv2.BORDER_REPLICATE), np.float32)
    person = _jitter(pixels.astype(np.float32), rng)
    person = _dress(person, np.asarray(COLOURS[occupation.clothing], np.float32), rng)
    if covered and occupation.cover:
        _draw_cover(person, alpha, occupation.cover, warp)
    return _over(person, alpha, _backdrop(BACKDROPS[occupation.backdrop], rng))


def is_covered(occupation: Occupation, rng: np.random.Generator) -> bool:
    """Whether a new image of the occupation hides the face."""
    return occupation.cover is not None and rng.random() < HIDDEN_FACE_RATE


def draw_thing(thing: Thing, rng: np.random.Generator) -> U8:
    """One augmented image of an object before a random plain backdrop, `[64, 64, 3]` uint8 RGB."""
    warp = _random_affine(rng, scale=0.82, spread=0.08)
    rgba = cv2.warpAffine(thing.pixels_u8, warp, (SOURCE_SIZE, SOURCE_SIZE))
    alpha = np.asarray(rgba[..., 3].astype(np.float32) / 255, np.float32)
    colour = list(BACKDROPS.values())[rng.integers(len(BACKDROPS))]
    return _over(_jitter(rgba[..., :3].astype(np.float32), rng), alpha, _backdrop(colour, rng))


def _random_affine(rng: np.random.Generator, scale: float = 1.0, spread: float = 0.05) -> NDArray[np.float64]:
    """A 2 x 3 affine of a 128 px image: mirror, rotation +-6 degrees, scale per direction, shift +-4%."""
    angle = np.deg2rad(rng.uniform(-6, 6))
    stretch = scale * (1 + rng.uniform(-spread, spread, 2)) * (1 + rng.uniform(-0.03, 0.03))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation * stretch * np.array([rng.choice((-1.0, 1.0)), 1.0])
    centre = np.full(2, (SOURCE_SIZE - 1) / 2)
    shift = centre + rng.uniform(-0.04, 0.04, 2) * SOURCE_SIZE - matrix @ centre
    return np.column_stack([matrix, shift])


def _jitter(pixels: F32, rng: np.random.Generator) -> F32:
    """Small brightness, contrast and colour changes."""
    gain = rng.uniform(0.92, 1.08) * (1 + rng.uniform(-0.03, 0.03, 3)).astype(np.float32)
    return np.asarray((pixels - 128) * gain + 128 + np.float32(rng.uniform(-8, 8)), np.float32)


def _dress(person: F32, colour: F32, rng: np.random.Generator) -> F32:
    """Blend the clothing colour in below a soft line under the chin, keeping the folds."""
    height = np.arange(SOURCE_SIZE, dtype=np.float32)[:, None, None]
    weight = 0.88 / (1 + np.exp(-(height - 108 - rng.uniform(-2, 2)) / 2.5))
    light = person.mean(axis=2, keepdims=True) / 128
    cloth = colour * np.clip(0.72 + 0.28 * light, 0.5, 1.2)
    return np.asarray(person * (1 - weight) + cloth * weight, np.float32)


def _backdrop(colour: tuple[int, int, int], rng: np.random.Generator) -> F32:
    """A plain wall with a little light falling on it, `[128, 128, 3]`."""
    y, x = np.mgrid[0:SOURCE_SIZE, 0:SOURCE_SIZE].astype(np.float32) / SOURCE_SIZE - 0.5
    slope = rng.uniform(-16, 16, 2)
    light = (slope[0] * x + slope[1] * y + rng.uniform(-6, 6))[..., None]
    return np.asarray(np.asarray(colour, np.float32) + light, np.float32)


def _over(person: F32, alpha: F32, backdrop: F32) -> U8:
    blended = person * alpha[..., None] + backdrop * (1 - alpha[..., None])
    small = cv2.resize(blended, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.clip(small, 0, 255).astype(np.uint8)


def _draw_cover(person: F32, alpha: F32, cover: str, warp: NDArray[np.float64]) -> None:
    """Draw a helmet, shield, mesh mask or veil over the head, in place, and add it to the mask."""
    x, y = (float(v) for v in warp @ np.array([64.0, 60.0, 1.0]))
    centre = (round(x), round(y))

    def ellipse(axes: tuple[int, int], colour: tuple[int, int, int], dy: int = 0) -> None:
        at = (centre[0], centre[1] + dy)
        cv2.ellipse(person, at, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)
        cv2.ellipse(alpha, at, axes, 0, 0, 360, 1.0, -1, cv2.LINE_AA)

    if cover == "helmet":
        ellipse((46, 52), (226, 228, 230))
        ellipse((34, 32), (34, 42, 66), dy=2)
        cv2.ellipse(person, (centre[0] - 12, centre[1] - 8), (10, 5), -25, 0, 360, (128, 150, 190), -1, cv2.LINE_AA)
    elif cover == "shield":
        ellipse((40, 52), (52, 54, 58))
        corner = (centre[0] - 24, centre[1] - 14)
        cv2.rectangle(person, corner, (centre[0] + 24, centre[1] + 4), (20, 62, 46), -1, cv2.LINE_AA)
    elif cover == "mesh":
        ellipse((40, 50), (150, 152, 158))
        for offset in range(-36, 37, 8):
            column, row = centre[0] + offset, centre[1] + offset
            cv2.line(person, (column, centre[1] - 44), (column, centre[1] + 44), (96, 98, 104), 2)
            cv2.line(person, (centre[0] - 36, row), (centre[0] + 36, row), (96, 98, 104), 2)
    elif cover == "veil":
        ellipse((42, 50), (172, 168, 150), dy=6)
        ellipse((34, 36), (112, 110, 98), dy=8)
        ellipse((60, 12), (216, 196, 128), dy=-32)
        ellipse((30, 20), (208, 186, 116), dy=-42)
    else:
        raise ValueError(f"unknown cover {cover!r}; use helmet, shield, mesh or veil")
