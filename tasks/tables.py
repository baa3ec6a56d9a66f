"""Reading `images` without holding every picture in memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from storage.images import decode_png
from storage.store import ArtifactRef, Store


def read_images(store: Store, sample: ArtifactRef) -> pd.DataFrame:
    """The `images` table without its pictures."""
    shards = [shard.drop(columns="image") for shard in store.iter_table(sample, "images")]
    return pd.concat(shards, ignore_index=True)


def iter_batches(shard: pd.DataFrame, batch_size: int) -> Iterator[tuple[pd.DataFrame, NDArray[np.uint8]]]:
    """Rows and pixels [B, H, W, 3] uint8 of one shard, batch by batch."""
    for start in range(0, len(shard), batch_size):
        rows = shard.iloc[start : start + batch_size]
        yield rows, np.stack([decode_png(cell["bytes"]) for cell in rows["image"]])


def read_pictures(store: Store, sample: ArtifactRef, image_ids: set[str]) -> dict[str, bytes]:
    """The PNG bytes of some images, by id."""
    found: dict[str, Any] = {}
    for shard in store.iter_table(sample, "images"):
        chosen = shard[shard["image_id"].isin(image_ids)]
        found |= dict(zip(chosen["image_id"], (cell["bytes"] for cell in chosen["image"]), strict=True))
    return found
