"""The pairs of a study: the same prompts and seeds sampled by two systems, and pairs whose answer is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from popalign_core.config.review import CheckKind, StudyConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id

UNSEEDED = -1
"""In column `seed` of `images`: an image made elsewhere, which pairs with any seed."""


@dataclass(frozen=True)
class ImagePair:
    """Two sets of images for one prompt.

    Attributes:
        pair_id: Hash of the rest.
        prompt_id: Of both sets.
        a: Image ids of system A; of a check, those that are better beyond doubt.
        b: Image ids of system B; of a check, images of the same system as `a`.
        checks: Name of the question whose answer is known to be A; "" for a pair of two systems.
        kind: How a check is made; None for a pair of two systems.
    """

    pair_id: str
    prompt_id: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    checks: str = ""
    kind: CheckKind | None = None


def pair_sets(a: pd.DataFrame, b: pd.DataFrame, config: StudyConfig) -> list[ImagePair]:
    """Sets of two systems on common prompts and seeds; the i-th image of both sides has the same seed.

    Args:
        a: Table `images` of system A, without those that were withheld.
        b: The same of system B.
        config: Size and number of the sets.

    Returns:
        In the order of their ids, which says nothing about the images.

    Raises:
        InputError: When no prompt has images enough, or there are fewer pairs than asked for.
    """
    both = a.merge(b, on=["prompt_id", "index"], suffixes=("_a", "_b"))
    same = (both["seed_a"] == both["seed_b"]) | (both["seed_a"] == UNSEEDED) | (both["seed_b"] == UNSEEDED)
    both = both[same].sort_values(["prompt_id", "index"])
    pairs = [pair for prompt_id, rows in both.groupby("prompt_id") for pair in _cut(str(prompt_id), rows, config)]
    if len(pairs) < max(config.n_pairs, 1):
        raise InputError(
            f"the systems have {len(pairs)} pair(s) of {config.set_size} images with the same prompts and seeds, out "
            f"of {len(both)} common images; {max(config.n_pairs, 1)} are asked for: take smaller sets or fewer pairs"
        )
    pairs.sort(key=lambda pair: pair.pair_id)
    chosen = np.random.default_rng(config.seed).permutation(len(pairs))[: config.n_pairs or None]
    return [pairs[number] for number in sorted(chosen)]


def make_checks(pairs: Sequence[ImagePair], config: StudyConfig) -> list[ImagePair]:
    """Pairs whose answer is known, made of the study's own images, the systems and the questions taking turns."""
    questions = [question for question in config.questions if question.check is not None]
    if not questions:
        return []
    order = np.random.default_rng([config.seed, 1]).permutation(len(pairs))
    checks = []
    for number in range(config.n_checks):
        question = questions[number % len(questions)]
        pair = pairs[order[number % len(pairs)]]
        images = pair.a if number // len(questions) % 2 == 0 else pair.b
        other = images if question.check == "spoiled" else images[:1] * len(images)
        pair_id = content_id("check", question.name, number, pair.pair_id)
        checks.append(ImagePair(pair_id, pair.prompt_id, images, other, question.name, question.check))
    return checks


def _cut(prompt_id: str, rows: pd.DataFrame, config: StudyConfig) -> list[ImagePair]:
    pairs = []
    for number in range(min(config.sets_per_prompt, len(rows) // config.set_size)):
        part = rows.iloc[number * config.set_size : (number + 1) * config.set_size]
        a, b = tuple(part["image_id_a"]), tuple(part["image_id_b"])
        pairs.append(ImagePair(content_id("pair", prompt_id, a, b), prompt_id, a, b))
    return pairs
