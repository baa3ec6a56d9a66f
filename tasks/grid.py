"""Pictures of base and aligned model for the same prompts and seeds."""

import io

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from storage.images import decode_png
from storage.store import ArtifactRef, Store
from tasks.tables import read_images, read_pictures

Pairs = dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]
"""Prompt -> (base, aligned), each [n, H, W, 3] uint8; the i-th of both has the same seed."""

CELL = 64
"""px; enough for a glance, small enough for a Prefect artifact."""
GAP = 16


def read_pairs(
    store: Store,
    prompts: pd.DataFrame,
    base: ArtifactRef,
    aligned: ArtifactRef,
    n_prompts: dict[str, int],
    n_images: int = 6,
) -> Pairs:
    """The first images of the first evaluation prompts.

    Args:
        store: Where the artifacts are.
        prompts: All prompts.
        base: Evaluation images of the base model.
        aligned: Evaluation images of the aligned model.
        n_prompts: Prompts by kind.
        n_images: Images of each, at most.
    """
    evaluated = prompts[prompts["split"] == "eval"]
    texts = pd.concat([evaluated[evaluated["kind"] == kind].head(n) for kind, n in n_prompts.items()])
    sides = [_read_side(store, sample, texts["prompt_id"].tolist(), n_images) for sample in (base, aligned)]
    chosen = zip(texts["prompt_id"], texts["text"], strict=True)
    return {text: (sides[0][prompt_id], sides[1][prompt_id]) for prompt_id, text in chosen}


def draw_grid(pairs: Pairs) -> bytes:
    """A PNG: a row a prompt, base left and aligned right."""
    n_images = max(len(before) for before, _ in pairs.values())
    sheet = Image.new("RGB", (2 * n_images * CELL + GAP, len(pairs) * CELL), "white")
    for row, sides in enumerate(pairs.values()):
        for side, pictures in enumerate(sides):
            for column, pixels_u8 in enumerate(pictures):
                picture = Image.fromarray(pixels_u8).resize((CELL, CELL), Image.Resampling.LANCZOS)
                sheet.paste(picture, (side * (n_images * CELL + GAP) + column * CELL, row * CELL))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _read_side(store: Store, sample: ArtifactRef, prompt_ids: list[str], n_images: int) -> dict[str, NDArray[np.uint8]]:
    """Prompt id -> [n, H, W, 3] uint8 in the order of the images' indices."""
    images = read_images(store, sample)
    images = images[images["prompt_id"].isin(prompt_ids) & (images["index"] < n_images)].sort_values("index")
    found = read_pictures(store, sample, set(images["image_id"]))
    return {
        str(prompt_id): np.stack([decode_png(found[image_id]) for image_id in group["image_id"]])
        for prompt_id, group in images[images["image_id"].isin(list(found))].groupby("prompt_id")
    }
