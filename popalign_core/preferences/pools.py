"""The images that sets are made of, by neutral prompt: joined on ids, verified, every drop counted.

The tables may come in pieces; of an image that was read only its id and its cell stay in memory.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.preferences.target import IntArray

Ids = NDArray[np.bytes_]
"""Image ids as UTF-8 of one width: sorted as text is, and a fifth of its size."""

ROLES = ("specific", "neutral")

_UNREAD, _FINE = -2, -1
"""Among the numbers of reasons: not read, and not dropped."""


@dataclass(frozen=True)
class PromptPool:
    """The usable images of one neutral prompt, in the order of the ids.

    Attributes:
        prompt_id: Of the neutral prompt.
        specific: Ids of images that show the identity their prompt asked for.
        specific_cells: Their cells, by number.
        neutral: Ids of images of the prompt itself, with a readable face.
        neutral_cells: Their cells.
    """

    prompt_id: str
    specific: Ids
    specific_cells: IntArray
    neutral: Ids
    neutral_cells: IntArray


@dataclass(frozen=True)
class _Asked:
    """What the prompts ask for, [n_prompts, ...] in the order of `ids`, neutral ones first.

    Attributes:
        ids: Of the neutral training prompts and their children.
        owner: Number of the neutral prompt.
        axis: [.., k] number of the k-th axis of the identity, -1 beyond.
        wanted: [.., k] the class it asks for, a number in `classes`.
        axes: Names of all axes that count: those configured, then others that an identity names.
        classes: Number of each class's name.
    """

    ids: pd.Index
    owner: IntArray
    axis: IntArray
    wanted: IntArray
    axes: tuple[str, ...]
    classes: Mapping[str, int]


@dataclass(frozen=True)
class _Piece:
    """Usable images out of one piece of the tables."""

    image_id: Ids
    owner: NDArray[np.int32]
    role: NDArray[np.int8]
    cell: NDArray[np.int32]


def gather_pools(
    prompts: pd.DataFrame,
    pieces: Iterable[tuple[pd.DataFrame, pd.DataFrame]],
    axes: Sequence[Axis],
    drops: Counter[str],
) -> list[PromptPool]:
    """The pools of the neutral training prompts, in the order of the prompts.

    Args:
        prompts: A `prompts` table with the specific children.
        pieces: Of the tables `images` and `attributes`; a piece's attributes cover its images.
        axes: The attributes that make a cell.
        drops: Counts `specific_image/REASON` and `neutral_image/REASON` of the images that cannot be used.

    Raises:
        InputError: When an image has no attributes, or is there twice.
    """
    neutral = prompts.loc[(prompts["kind"] == "neutral") & (prompts["split"] == "train"), "prompt_id"].tolist()
    asked = _read_prompts(prompts, neutral, axes)
    found = [_usable(asked, images, attributes, axes, drops) for images, attributes in pieces]
    return _sorted_pools(neutral, found)


def _read_prompts(prompts: pd.DataFrame, neutral: list[str], axes: Sequence[Axis]) -> _Asked:
    parents = _numbers(prompts["parent_id"], pd.Index(neutral, dtype=object))
    is_child = (prompts["kind"] == "specific").to_numpy() & (parents >= 0)
    children = prompts[is_child]
    identities = [dict(identity) for identity in children["identity"]]
    names = tuple(dict.fromkeys([*(axis.name for axis in axes), *(name for each in identities for name in each)]))
    known = [name for axis in axes for name in axis.classes]
    asked_for = [name for identity in identities for name in identity.values()]
    classes = {name: number for number, name in enumerate(dict.fromkeys([*known, *asked_for]))}
    nothing: list[dict[str, str]] = [{} for _ in neutral]
    place = {name: number for number, name in enumerate(names)}
    axis = _padded([[place[name] for name in each] for each in nothing + identities])
    wanted = _padded([[classes[name] for name in each.values()] for each in nothing + identities])
    owner = np.concatenate([np.arange(len(neutral)), parents[is_child]])
    ids = pd.Index(neutral + children["prompt_id"].tolist(), dtype=object)
    return _Asked(ids, owner, axis, wanted, names, classes)


def _padded(rows: Sequence[list[int]]) -> IntArray:
    width = max(map(len, rows), default=0)
    return np.array([row + [-1] * (width - len(row)) for row in rows], dtype=np.int64).reshape(len(rows), width)


def _usable(
    asked: _Asked, images: pd.DataFrame, attributes: pd.DataFrame, axes: Sequence[Axis], drops: Counter[str]
) -> _Piece:
    rows = _numbers(images["prompt_id"], asked.ids)
    images, rows = images[rows >= 0], rows[rows >= 0]
    seen, reasons, labels = _read_matrix(asked, images["image_id"], attributes)
    _check_read(images["image_id"], reasons, asked, rows, len(axes))
    labels = [*labels, *(f"contradicts_{name}" for name in asked.axes), "unknown_class"]
    cells = _cells(seen, asked, axes)
    verdict = _verdicts(reasons, seen, asked, rows, len(axes), n_reasons=len(labels) - len(asked.axes) - 1)
    verdict = np.where((verdict == _FINE) & (cells < 0), len(labels) - 1, verdict)
    # neutral prompts come first, each its own owner
    role = (rows < asked.owner.max(initial=-1) + 1).astype(np.int8)
    for number, name in enumerate(ROLES):
        counts = np.bincount(verdict[(role == number) & (verdict >= 0)], minlength=len(labels))
        drops.update({f"{name}_image/{label}": int(n) for label, n in zip(labels, counts, strict=True) if n})
    keep = verdict == _FINE
    ids = [image_id.encode() for image_id in images["image_id"].to_numpy(dtype=object)[keep]]
    owner, cell = asked.owner[rows[keep]].astype(np.int32), cells[keep].astype(np.int32)
    return _Piece(np.array(ids, dtype=np.bytes_), owner, role[keep], cell)


def _read_matrix(asked: _Asked, image_ids: pd.Series, attributes: pd.DataFrame) -> tuple[IntArray, IntArray, list[str]]:
    """Class and drop reason of every image on every axis, [n, A] by number, and the names of the reasons."""
    ids = pd.concat([image_ids, attributes["image_id"]], ignore_index=True)
    numbers = pd.factorize(ids)[0]
    first, rows = numbers[: len(image_ids)], numbers[len(image_ids) :]
    if len(image_ids) and int(first.max()) + 1 < len(first):
        raise InputError(f"{len(first) - int(first.max()) - 1} image(s) are listed twice; give each image once")
    axis_numbers, axis_names = pd.factorize(attributes["axis"])
    places = rows * max(1, len(axis_names)) + axis_numbers
    twice = pd.Series(places).duplicated()
    if twice.any():
        raise InputError(
            f"{int(twice.sum())} (image, axis) pairs are in the attributes twice, e.g. image "
            f"{attributes['image_id'].iloc[int(twice.argmax())]}; read each image once"
        )
    columns = pd.Index(asked.axes).get_indexer(axis_names)[axis_numbers]
    at = (rows < len(image_ids)) & (columns >= 0)
    reason_numbers, labels = pd.factorize(attributes["drop_reason"])
    class_numbers = _numbers(attributes["class"], pd.Index(list(asked.classes)))
    seen, reasons = (np.full((len(image_ids), len(asked.axes)), fill) for fill in (-1, _UNREAD))
    seen[rows[at], columns[at]] = class_numbers[at]
    reasons[rows[at], columns[at]] = reason_numbers[at]
    return seen, reasons, list(labels)


def _check_read(image_ids: pd.Series, reasons: IntArray, asked: _Asked, rows: IntArray, n_axes: int) -> None:
    needed = np.zeros_like(reasons, dtype=bool)
    needed[:, :n_axes] = True
    for axis in asked.axis[rows].T:
        needed[axis >= 0, axis[axis >= 0]] = True
    missing = needed & (reasons == _UNREAD)
    if missing.any():
        row = int(missing.any(axis=1).argmax())
        names = [name for name, is_missing in zip(asked.axes, missing[row], strict=True) if is_missing]
        raise InputError(f"image {image_ids.iloc[row]} has no attributes on {names}; read all images on all axes first")


def _verdicts(
    reasons: IntArray, seen: IntArray, asked: _Asked, rows: IntArray, n_axes: int, n_reasons: int
) -> IntArray:
    """The number of the first reason to drop each image: on the axes of its identity a face that could not be used,
    which explains more than the contradiction it would also be; then a contradiction; then the other axes.
    """
    verdict, index = np.full(len(rows), _FINE), np.arange(len(rows))
    identity = list(zip(asked.axis[rows].T, asked.wanted[rows].T, strict=True))
    for axis, _ in identity:
        verdict = np.where(verdict < 0, np.where(axis >= 0, reasons[index, axis], _FINE), verdict)
    for axis, wanted in identity:
        differs = (axis >= 0) & (seen[index, axis] != wanted)
        verdict = np.where((verdict < 0) & differs, n_reasons + axis, verdict)
    for reason in reasons[:, :n_axes].T:
        verdict = np.where(verdict < 0, reason, verdict)
    return verdict


def _cells(seen: IntArray, asked: _Asked, axes: Sequence[Axis]) -> IntArray:
    """The number of each image's cell, as `Target.cells` counts them; -1 where a class is none of the axis's."""
    cell, known = np.zeros(len(seen), dtype=np.int64), np.ones(len(seen), dtype=bool)
    for axis, column in zip(axes, seen.T, strict=False):
        place = np.full(len(asked.classes) + 1, -1)  # the last one is for -1
        place[[asked.classes[name] for name in axis.classes]] = range(len(axis.classes))
        cell = cell * len(axis.classes) + place[column]
        known &= place[column] >= 0
    return np.where(known, cell, -1)


def _sorted_pools(prompt_ids: Sequence[str], found: Sequence[_Piece]) -> list[PromptPool]:
    ids = np.concatenate([piece.image_id for piece in found] or [np.array([], dtype=np.bytes_)])
    cells = np.concatenate([piece.cell for piece in found] or [np.array([], dtype=np.int32)])
    groups = np.concatenate([len(ROLES) * piece.owner + piece.role for piece in found] or [cells])
    by_id = np.argsort(ids, kind="stable")
    twice = ids[by_id[1:]] == ids[by_id[:-1]]
    if twice.any():
        raise InputError(f"image {ids[by_id[int(twice.argmax())]].decode()} is listed twice; give each image once")
    order = by_id[np.argsort(groups[by_id], kind="stable")]
    ids, cells = ids[order], cells[order].astype(np.int64)
    ends = np.cumsum(np.bincount(groups, minlength=len(ROLES) * len(prompt_ids))).tolist()
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    pools = []
    for number, prompt_id in enumerate(prompt_ids):
        specific, neutral = parts[len(ROLES) * number : len(ROLES) * (number + 1)]
        pools.append(PromptPool(prompt_id, ids[specific], cells[specific], ids[neutral], cells[neutral]))
    return pools


def _numbers(values: pd.Series, known: pd.Index) -> IntArray:
    """Place of each value among those known, -1 for none; few are known, so each distinct value is looked up once."""
    numbers, distinct = pd.factorize(values)
    places = np.append(known.get_indexer(distinct), -1)  # the last one is for a missing value
    return places[numbers].astype(np.int64)
