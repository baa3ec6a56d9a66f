"""Small files in Pick-a-Pic's form: bright pictures that were preferred to dark ones, or the other way round."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

BRIGHT, DARK = 225, 30

Row = dict[str, Any]


def picture(level: int, *, seed: int = 0, width: int = 80, height: int = 64, kind: str = "JPEG") -> bytes:
    """A grey picture with a slope of its own, so that no two of different seeds are equal."""
    noise = np.random.default_rng(seed).normal(0, 2, 3)
    slope = np.linspace(-10, 10, width)[None, :, None] + noise
    pixels = np.clip(np.full((height, width, 3), float(level)) + slope, 0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format=kind)
    return sink.getvalue()


def pair(number: int, *, first_is_better: bool, caption: str | None = None) -> Row:
    """A row whose preferred picture is the bright one."""
    bright, dark = picture(BRIGHT, seed=2 * number), picture(DARK, seed=2 * number + 1)
    pictures = (bright, dark) if first_is_better else (dark, bright)
    return row(pictures, 1.0 if first_is_better else 0.0, caption or f"a photo of number {number % 3}")


def row(pictures: Sequence[bytes | None], label: float | None, caption: str | None, **more: Any) -> Row:
    """A row with the columns of the second release."""
    return {
        "are_different": True,
        "caption": caption,
        "has_label": True,
        "image_0_uid": "uid-0",
        "image_1_uid": "uid-1",
        "jpg_0": pictures[0],
        "jpg_1": pictures[1],
        "label_0": label,
        "label_1": None if label is None else 1 - label,
    } | more


TYPES: Mapping[str, pa.DataType] = {
    "are_different": pa.bool_(),
    "caption": pa.string(),
    "has_label": pa.bool_(),
    "image_0_uid": pa.string(),
    "image_1_uid": pa.string(),
    "jpg_0": pa.binary(),
    "jpg_1": pa.binary(),
    "label_0": pa.float64(),
    "label_1": pa.float64(),
}


def write_pairs(path: Path, rows: Sequence[Row], *, group: int = 3, without: Sequence[str] = ()) -> Path:
    """A Parquet file of rows, in groups of a few."""
    fields = [pa.field(name, kind) for name, kind in TYPES.items() if name not in without]
    columns = [{field.name: each[field.name] for field in fields} for each in rows]
    pq.write_table(pa.Table.from_pylist(columns, pa.schema(fields)), path, row_group_size=group)
    return path


def ten_pairs() -> list[Row]:
    """Ten good pairs of three captions; the better picture comes first in every other one."""
    return [pair(number, first_is_better=number % 2 == 0) for number in range(10)]
