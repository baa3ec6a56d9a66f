"""Pairs of sets: people made the preferred one; the dispreferred one is a random choice of what the model samples."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from popalign_core.preferences.target import Target
from popalign_core.review.curation_chains import Seen, measure_set

_COLUMNS = ["set_id", "prompt_id", "role", "image_id", "slot", "target", "discrepancy", "balance"]


def pair_human_sets(
    curated: pd.DataFrame, images: pd.DataFrame, seen: Seen, axes: Sequence[Axis], seed: int, drops: Counter[str]
) -> pd.DataFrame:
    """A `preferences` table of finished sets.

    A preferred set is kept as the curator made it, whatever a classifier reads in it. The dispreferred
    set is chosen at random from the prompt's own images with a readable face that are in no preferred set of the
    prompt. It may be smaller, by at most half.

    Args:
        curated: A `curated` table.
        images: `image_id` and `prompt_id` of the images the sets were chosen from.
        seen: What the classifier read.
        axes: The attributes with their targets, for the statistics.
        seed: Decides the dispreferred sets.
        drops: Counts `set_pair/too_few_neutral_images`.

    Raises:
        InputError: When a set has an image that is not among `images`, or no set can be used.
    """
    missing = sorted(set(curated["image_id"]) - set(images["image_id"]))
    if missing:
        raise InputError(
            f"{len(missing)} image(s) of the curated sets, e.g. {missing[0]}, are not among those of this "
            "configuration; train with the configuration of the run that the study was made of"
        )
    known = images["image_id"].map(lambda image_id: all(axis.name in seen.get(image_id, {}) for axis in axes))
    taken = images["image_id"].isin(curated["image_id"])
    neutral = {
        str(prompt_id): sorted(ids) for prompt_id, ids in images[known & ~taken].groupby("prompt_id")["image_id"]
    }
    rows: list[tuple[object, ...]] = []
    for key, members in curated.sort_values("slot").groupby("set_id"):
        prompt_id, winners = str(members["prompt_id"].iloc[0]), members["image_id"].tolist()
        losers = _draw(neutral.get(prompt_id, []), len(winners), seed, str(key))
        if 2 * len(losers) < len(winners):
            drops["set_pair/too_few_neutral_images"] += 1
            continue
        rows += _rows(str(key), prompt_id, (winners, losers), seen, axes)
    if not rows:
        raise InputError(f"none of the curated sets can be used: {dict(drops) or 'there is none'}; sample more images")
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"slot": "int32"})


def _draw(image_ids: Sequence[str], size: int, seed: int, key: str) -> list[str]:
    generator = np.random.default_rng(int(content_id("human-sets", seed, key), 16))
    return [image_ids[place] for place in generator.permutation(len(image_ids))[:size]]


def _rows(
    set_id: str, prompt_id: str, sides: tuple[Sequence[str], Sequence[str]], seen: Seen, axes: Sequence[Axis]
) -> Iterable[tuple[object, ...]]:
    target = Target(axes)
    for role, image_ids in zip(("preferred", "dispreferred"), sides, strict=True):
        distance = measure_set(image_ids, seen, axes)
        balance = 1.0 - distance / target.largest_discrepancy()
        for slot, image_id in enumerate(image_ids):
            yield set_id, prompt_id, role, image_id, slot, target.table(), distance, balance
