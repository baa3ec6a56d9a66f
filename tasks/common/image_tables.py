"""Reading `images` without holding every image in memory, and what tables of imported data share."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from storage.formats.images import decode_png
from storage.store import ArtifactRef, Store

NO_SEED = -1
"""In column `seed` of `images`: these images are external."""


def drops_table(stage: str, counts: Mapping[Any, int]) -> pd.DataFrame:
    """Table `drops` of a stage: how many of what it was given were dropped, by reason."""
    found = sorted((reason, n) for reason, n in counts.items() if n)
    reasons, numbers = [reason for reason, _ in found], np.array([n for _, n in found], dtype=np.int64)
    return pd.DataFrame({"stage": stage, "reason": pd.Series(reasons, dtype=object), "n": numbers})


def read_images(store: Store, sample: ArtifactRef) -> pd.DataFrame:
    """The `images` table without its pixels, and in their place `is_shown`: whether there is one."""
    shards = [
        shard.assign(is_shown=shard["image"].notna()).drop(columns="image")
        for shard in store.iter_table(sample, "images")
    ]
    return pd.concat(shards, ignore_index=True)


def seen_classes(attributes: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Image id -> axis -> class, of a table `attributes`; what could not be used is left out."""
    seen: dict[str, dict[str, str]] = {}
    read = attributes[attributes["class"].notna()]
    for image_id, axis, name in read[["image_id", "axis", "class"]].itertuples(index=False):
        seen.setdefault(image_id, {})[axis] = name
    return seen


def iter_batches(shard: pd.DataFrame, batch_size: int) -> Iterator[tuple[pd.DataFrame, NDArray[np.uint8]]]:
    """Rows and pixels [B, H, W, 3] uint8 of images that were not withheld, batch by batch."""
    for start in range(0, len(shard), batch_size):
        rows = shard.iloc[start : start + batch_size]
        yield rows, np.stack([decode_png(cell["bytes"]) for cell in rows["image"]])


def read_image_bytes(store: Store, sample: ArtifactRef, image_ids: set[str]) -> dict[str, bytes]:
    """The PNG bytes of some images, by id; those that were withheld are absent."""
    found: dict[str, Any] = {}
    for shard in store.iter_table(sample, "images"):
        chosen = shard[shard["image_id"].isin(image_ids) & shard["image"].notna()]
        found |= dict(zip(chosen["image_id"], (cell["bytes"] for cell in chosen["image"]), strict=True))
    return found
