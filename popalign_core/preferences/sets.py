"""Set preferences: for each neutral training prompt, sets near the target population against sets as the model draws.

Preferred images come from the prompt's identity-specific children, dispreferred ones from the prompt itself; both
will carry the neutral prompt as caption in training.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from popalign_core.attributes.filtering import agreeing, classes_by_image
from popalign_core.config import Axis, PreferencesConfig
from popalign_core.errors import InputError
from popalign_core.evaluation.fairness import discrepancy
from popalign_core.ids import content_id

Cell = tuple[str, ...]
"""One class of each axis, in the order of the axes."""

_STAGE = "preferences"
_COLUMNS = ("set_id", "prompt_id", "role", "image_id", "slot", "target", "discrepancy", "balance")


@dataclass(frozen=True)
class _Pool:
    """The usable images of one neutral prompt, image id -> cell, in the order of the ids."""

    specific: dict[str, Cell]
    neutral: dict[str, Cell]


def build_sets(
    prompts: pd.DataFrame,
    images: pd.DataFrame,
    attributes: pd.DataFrame,
    axes: Sequence[Axis],
    config: PreferencesConfig,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Build up to `n_sets` pairs of sets for each neutral training prompt.

    No image is in two sets. The preferred sets follow the target joint (the product of the axes' targets) by
    quota, as near as the images allow; the dispreferred ones are drawn at random from the neutral images with a
    readable face. The sets of a prompt have equal sizes: `set_size`, or less by at most half where images are
    missing, or fewer sets. A pair whose preferred set is not nearer the target is no preference and is dropped.

    Args:
        prompts: A `prompts` table with the specific children.
        images: `image_id` and `prompt_id` at least; images of other prompts than training ones are not looked at.
        attributes: An `attributes` table that covers the images.
        axes: The attributes with their targets.
        config: Sizes and the seed. The draw depends on nothing else, nor on the order of any row.

    Returns:
        A `preferences` table and a `drops` table. Its reasons `specific_image/...` and `neutral_image/...` count
        images, and with the images used add up to the images given (`unused`: fine, but in no set);
        `prompt/...` counts prompts and `set_pair/...` pairs.

    Raises:
        InputError: When an image has no attributes, or no pair at all can be built.
    """
    neutral = prompts[(prompts["kind"] == "neutral") & (prompts["split"] == "train")]
    drops: Counter[str] = Counter()
    pools = _pools(list(neutral["prompt_id"]), prompts, images, attributes, axes, drops)
    rows: list[dict[str, Any]] = []
    for prompt_id in neutral["prompt_id"]:
        pool = pools[prompt_id]
        pairs = _set_pairs(prompt_id, pool, axes, config, drops)
        rows += [row for pair in pairs for row in pair]
        used = Counter(row["role"] for pair in pairs for row in pair)
        drops["specific_image/unused"] += len(pool.specific) - used["preferred"]
        drops["neutral_image/unused"] += len(pool.neutral) - used["dispreferred"]
    counted = sorted((reason, n) for reason, n in drops.items() if n)
    if not rows:
        raise InputError(
            f"no preference pair can be built from {len(neutral)} neutral training prompt(s) and {len(images)} "
            f"image(s); dropped: {dict(counted) or 'nothing'}. Sample more images or lower preferences.set_size"
        )
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"slot": np.int32})
    return table, pd.DataFrame(
        {
            "stage": [_STAGE] * len(counted),
            "reason": [reason for reason, _ in counted],
            "n": np.array([n for _, n in counted], dtype=np.int64),
        }
    )


def target_joint(axes: Sequence[Axis]) -> dict[Cell, float]:
    """Share of each cell when the axes are independent: the product of their targets."""
    shares = [dict(zip(axis.classes, axis.shares(), strict=True)) for axis in axes]
    cells = product(*(axis.classes for axis in axes))
    return {cell: float(np.prod([share[name] for share, name in zip(shares, cell, strict=True)])) for cell in cells}


def set_discrepancy(cells: Sequence[Cell], axes: Sequence[Axis]) -> float:
    """Mean over the axes of `|| target - shares ||_2` (Eq. 13), over the axes' fixed class lists.

    Args:
        cells: One an image of the set; at least one.
        axes: The attributes with their targets.

    Returns:
        0 at the target.
    """
    distances = []
    for i, axis in enumerate(axes):
        found = Counter(cell[i] for cell in cells)
        distances.append(discrepancy([found[name] for name in axis.classes], axis.shares()))
    return float(np.mean(distances))


def largest_discrepancy(axes: Sequence[Axis]) -> float:
    """The largest `set_discrepancy` there is: on every axis all images in its least wanted class."""
    distances = []
    for axis in axes:
        counts = [0] * len(axis.classes)
        counts[int(np.argmin(axis.shares()))] = 1
        distances.append(discrepancy(counts, axis.shares()))
    return float(np.mean(distances))


def _pools(
    parents: Sequence[str],
    prompts: pd.DataFrame,
    images: pd.DataFrame,
    attributes: pd.DataFrame,
    axes: Sequence[Axis],
    drops: Counter[str],
) -> dict[str, _Pool]:
    """Usable images by neutral prompt, joined on ids; the others are counted in `drops`."""
    children = prompts[(prompts["kind"] == "specific") & prompts["parent_id"].isin(list(parents))]
    parent_of = dict(zip(children["prompt_id"], children["parent_id"], strict=True))
    relevant = images[images["prompt_id"].isin([*parents, *parent_of])].sort_values("image_id", kind="stable")
    verdicts = agreeing(attributes, relevant, children)
    rejected = verdicts[~verdicts["keep"]]
    reasons = dict(zip(rejected["image_id"], rejected["reason"], strict=True))
    seen = classes_by_image(attributes)
    pools = {parent: _Pool({}, {}) for parent in parents}
    for image_id, prompt_id in zip(relevant["image_id"], relevant["prompt_id"], strict=True):
        is_specific = prompt_id in parent_of
        read = _read(image_id, seen, axes)
        reason = reasons.get(image_id) or next((read[axis.name][1] for axis in axes if read[axis.name][1]), None)
        if reason is not None:
            drops[f"{'specific' if is_specific else 'neutral'}_image/{reason}"] += 1
            continue
        pool = pools[parent_of.get(prompt_id, prompt_id)]
        (pool.specific if is_specific else pool.neutral)[image_id] = tuple(str(read[axis.name][0]) for axis in axes)
    return pools


def _read(
    image_id: str, seen: Mapping[str, Mapping[str, tuple[str | None, str | None]]], axes: Sequence[Axis]
) -> Mapping[str, tuple[str | None, str | None]]:
    read = seen.get(image_id, {})
    missing = [axis.name for axis in axes if axis.name not in read]
    if missing:
        raise InputError(f"image {image_id} has no attributes on {missing}; read all images on all axes first")
    return read


def _set_pairs(
    prompt_id: str, pool: _Pool, axes: Sequence[Axis], config: PreferencesConfig, drops: Counter[str]
) -> list[list[dict[str, Any]]]:
    """The pairs of one prompt, each a list of rows."""
    scarcest = min(len(pool.specific), len(pool.neutral))
    shape = _n_sets_and_size(scarcest, config)
    if shape is None:
        drops[f"prompt/too_few_{'specific' if len(pool.specific) < len(pool.neutral) else 'neutral'}_images"] += 1
        return []
    n_sets, size = shape
    generator = np.random.default_rng(int(content_id("sets", config.seed, prompt_id), 16))
    preferred = _draw_to_target(pool.specific, n_sets, size, axes, generator)
    shuffled = [str(image_id) for image_id in generator.permutation(list(pool.neutral))]
    pairs = []
    for i, winners in enumerate(preferred):
        losers = shuffled[i * size : (i + 1) * size]
        better = set_discrepancy([pool.specific[name] for name in winners], axes)
        worse = set_discrepancy([pool.neutral[name] for name in losers], axes)
        if better >= worse:
            drops["set_pair/not_nearer_the_target"] += 1
            continue
        set_id = content_id("set-pair", prompt_id, sorted(winners), sorted(losers))
        pairs.append(
            [
                *_set_rows(set_id, prompt_id, "preferred", winners, better, axes),
                *_set_rows(set_id, prompt_id, "dispreferred", losers, worse, axes),
            ]
        )
    return pairs


def _n_sets_and_size(n_images: int, config: PreferencesConfig) -> tuple[int, int] | None:
    """As many sets as can be at least half full, as full as they can equally be."""
    for n_sets in range(config.n_sets, 0, -1):
        size = min(config.set_size, n_images // n_sets)
        if size > 0 and 2 * size >= config.set_size:
            return n_sets, size
    return None


def _draw_to_target(
    specific: Mapping[str, Cell], n_sets: int, size: int, axes: Sequence[Axis], generator: np.random.Generator
) -> list[list[str]]:
    """Sets whose cells are as near the target joint as the images allow, in the squared distance of counts.

    One image at a time goes to the cell that lacks most (target share x size - count so far). With images enough
    this is the largest-remainder quota; with too few it is still the nearest joint, because the squared distance
    is a sum of convex terms, one a cell. Equal cells are told apart by what the axes lack by themselves, then at
    random, so that no cell gets the odd image of every set. The sets take turns and so share what is scarce.
    """
    supply: dict[Cell, list[str]] = {}
    for image_id in generator.permutation(list(specific)):
        supply.setdefault(specific[str(image_id)], []).append(str(image_id))
    joint = target_joint(axes)
    sets: list[list[str]] = [[] for _ in range(n_sets)]
    for _ in range(size):
        for members in sets:
            counts = Counter(specific[name] for name in members)
            open_cells = [cell for cell, names in supply.items() if names]
            lacks = [(_lack(cell, counts, joint, size, axes), generator.random()) for cell in open_cells]
            members.append(supply[open_cells[lacks.index(max(lacks))]].pop())
    return sets


def _lack(
    cell: Cell, counts: Counter[Cell], joint: Mapping[Cell, float], size: int, axes: Sequence[Axis]
) -> tuple[float, float]:
    """Images this cell lacks, then images its classes lack over all axes; rounded, so that ties are ties."""
    marginal = 0.0
    for i, axis in enumerate(axes):
        have = sum(n for other, n in counts.items() if other[i] == cell[i])
        marginal += axis.shares()[axis.classes.index(cell[i])] * size - have
    return round(joint[cell] * size - counts[cell], 9), round(marginal, 9)


def _set_rows(
    set_id: str, prompt_id: str, role: str, image_ids: Sequence[str], distance: float, axes: Sequence[Axis]
) -> list[dict[str, Any]]:
    target = {
        f"{axis.name}={name}": share for axis in axes for name, share in zip(axis.classes, axis.shares(), strict=True)
    }
    common = {
        "set_id": set_id,
        "prompt_id": prompt_id,
        "role": role,
        "target": target,
        "discrepancy": distance,
        "balance": 1.0 - distance / largest_discrepancy(axes),
    }
    return [common | {"image_id": image_id, "slot": slot} for slot, image_id in enumerate(image_ids)]
