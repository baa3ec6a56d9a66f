"""Images of several systems for the same prompts and seeds."""

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from storage.formats.images import decode_png
from storage.store import ArtifactRef, Store
from tasks.common.image_tables import read_image_bytes, read_images
from tasks.stages.sample import sample_images

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
    """`read_grids` of the base model's evaluation images and of the aligned model's."""
    grids = read_grids(store, prompts, {"base": base, "aligned": aligned}, n_prompts, n_images)
    return {text: (sides["base"], sides["aligned"]) for text, sides in grids.items()}


def read_grids(
    store: Store,
    prompts: pd.DataFrame,
    samples: Mapping[str, ArtifactRef],
    n_prompts: Mapping[str, int],
    n_images: int = 6,
) -> dict[str, dict[str, NDArray[np.uint8]]]:
    """The first images of the first evaluation prompts, of several systems: those that all of them show.

    Args:
        store: Where the artifacts are.
        prompts: All prompts.
        samples: System -> its evaluation images; images made elsewhere are left out, they have no seed in common.
        n_prompts: Prompts by kind.
        n_images: Images of each, at most.

    Returns:
        Prompt -> system -> [n, H, W, 3] uint8; the i-th of every system has the same seed.
    """
    texts = _first_prompts(prompts, n_prompts)
    sampled = {name: sample for name, sample in samples.items() if sample.stage == sample_images.name}
    sides = {name: _read_numbered(store, sample, list(texts), n_images) for name, sample in sampled.items()}
    grids = {}
    for prompt_id, text in texts.items():
        shown = sorted(set.intersection(*(set(side.get(prompt_id, ())) for side in sides.values()))) if sides else []
        if shown:
            grids[text] = {name: np.stack([side[prompt_id][n] for n in shown]) for name, side in sides.items()}
    return grids


def draw_grid(pairs: Pairs) -> bytes:
    """A PNG: a row a prompt, base left and aligned right."""
    n_images = max(len(before) for before, _ in pairs.values())
    sheet = Image.new("RGB", (2 * n_images * CELL + GAP, len(pairs) * CELL), "white")
    for row, sides in enumerate(pairs.values()):
        for side, images in enumerate(sides):
            for column, pixels_u8 in enumerate(images):
                image = Image.fromarray(pixels_u8).resize((CELL, CELL), Image.Resampling.LANCZOS)
                sheet.paste(image, (side * (n_images * CELL + GAP) + column * CELL, row * CELL))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _first_prompts(prompts: pd.DataFrame, n_prompts: Mapping[str, int]) -> dict[str, str]:
    """Id -> text of the first evaluation prompts of each kind."""
    evaluated = prompts[prompts["split"] == "eval"]
    chosen = pd.concat([evaluated[evaluated["kind"] == kind].head(n) for kind, n in n_prompts.items()])
    return dict(zip(chosen["prompt_id"], chosen["text"], strict=True))


def _read_numbered(
    store: Store, sample: ArtifactRef, prompt_ids: list[str], n_images: int
) -> dict[str, dict[int, NDArray[np.uint8]]]:
    """Prompt id -> index -> [H, W, 3] uint8 of the images that are shown."""
    images = read_images(store, sample)
    images = images[images["prompt_id"].isin(prompt_ids) & (images["index"] < n_images)].sort_values("index")
    found = read_image_bytes(store, sample, set(images["image_id"]))
    return {
        str(prompt_id): {
            int(index): decode_png(found[image_id])
            for index, image_id in zip(group["index"], group["image_id"], strict=True)
        }
        for prompt_id, group in images[images["image_id"].isin(list(found))].groupby("prompt_id")
    }
