"""From tables to count arrays: what was asked of each image, what it was read as, how many of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.prompts.benchmarks import benchmarks_of, clusters_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

UNREAD = -1
"""Label of an image whose class is not known, or of an axis its prompt does not name."""


@dataclass(frozen=True)
class Counted:
    """Images by replicate, by prompt and by cell, a cell being a combination of labels that occurs.

    Attributes:
        counts: `[R, P, C]` images.
        cells: `[C]` rows, the labels of each cell.
        clusters: `[P]` the prompts.
    """

    counts: FloatArray
    cells: pd.DataFrame
    clusters: list[str]


def label_images(
    prompts: pd.DataFrame, images: pd.DataFrame, attributes: pd.DataFrame, axes: Sequence[Axis]
) -> pd.DataFrame:
    """One row an image, with whole numbers for classes.

    Args:
        prompts: Prompts table; may hold prompts without images. Without a column `benchmark`, the kind is it.
        images: image_id, prompt_id, index, seed; without a column `replicate`, all are of one.
        attributes: Attributes table, one row an (image, axis) for every image of a neutral or specific prompt.
        axes: Their order gives the class numbers.

    Returns:
        image_id, prompt_id, index, seed, replicate, kind, benchmark, `cluster` (see `clusters_of`), `face` (one
        usable face), and for every axis `read:AXIS` and `asked:AXIS`, the class's place in the axis or `UNREAD`.

    Raises:
        InputError: When an image has no prompt, occurs twice or has no attributes, a class is unknown, or two
            classifiers are mixed.
    """
    table = _with_prompts(prompts, images, axes)
    place = pd.Index(table["image_id"]).get_indexer(pd.Index(attributes["image_id"]))
    is_read = np.zeros(len(table), dtype=bool)
    is_read[place[place >= 0]] = True
    unread = table.loc[(table["kind"] != "generic").to_numpy() & ~is_read, "image_id"]
    if len(unread):
        raise InputError(
            f"{len(unread)} images have no row in the attributes table (first: {unread.iloc[0]}); "
            "read the attributes of the same images that are evaluated"
        )
    return table.assign(**_readings(attributes, place, len(table), axes))


def count_cells(labels: pd.DataFrame, columns: Sequence[str], clusters: Sequence[str] | None = None) -> Counted:
    """Count images by replicate, cluster and cell.

    Args:
        labels: From `label_images`, at least one row.
        columns: Which labels make a cell.
        clusters: All clusters, in the order wanted; None takes those that occur, sorted.
    """
    values = labels[list(columns)].to_numpy(dtype=np.int64)
    least = values.min(axis=0)
    sizes = tuple(values.max(axis=0) - least + 1)
    found, cell = np.unique(np.ravel_multi_index(tuple((values - least).T), sizes), return_inverse=True)
    cells = pd.DataFrame(np.stack(np.unravel_index(found, sizes), axis=1) + least, columns=list(columns))
    names = sorted(labels["cluster"].unique()) if clusters is None else list(clusters)
    cluster = pd.Index(names).get_indexer(pd.Index(labels["cluster"]))
    numbers, replicate = np.unique(labels["replicate"].to_numpy(), return_inverse=True)
    shape = (len(numbers), len(names), len(found))
    flat = np.bincount(np.ravel_multi_index((replicate, cluster, cell), shape), minlength=int(np.prod(shape)))
    return Counted(flat.reshape(shape).astype(np.float64), cells, names)


@dataclass(frozen=True)
class PooledImages:
    """Images read, by class, of all prompts together.

    Attributes:
        terms: `[R, P, K]` what each prompt adds.
        n: Images read.
        effective: `[R]` how many images of equal weight would vary as much (Kish, Survey Sampling, 1965).
    """

    terms: FloatArray
    n: int
    effective: FloatArray

    @classmethod
    def by_faces(cls, read: FloatArray) -> "PooledImages":
        """Every image read weighs the same, so prompts whose images are hard to read weigh less; `[R, P, K]`."""
        sizes = read.sum(axis=(1, 2))
        return cls(read, int(sizes.sum()), sizes)

    @classmethod
    def by_prompts(cls, read: FloatArray, faces: FloatArray | None = None) -> "PooledImages":
        """Every prompt weighs the same, however many of its images were read; without any, nothing.

        Args:
            read: `[R, P, K]` images read.
            faces: `[R, P]` how many faces stand behind them, where classes are read unequally often; None is as many.
        """
        sizes = read.sum(axis=-1)
        weights = np.divide(1.0, sizes if faces is None else faces, out=np.zeros_like(sizes), where=sizes > 0)
        squares = (weights**2 * sizes).sum(axis=1)
        total = (weights * sizes).sum(axis=1)
        effective = np.divide(total**2, squares, out=np.zeros_like(squares), where=squares > 0)
        return cls(read * weights[..., None], int(sizes.sum()), effective)


def indicator(labels: IntArray, n_classes: int) -> FloatArray:
    """`[C]` class numbers to a 0/1 matrix `[C, K]`; rows of `UNREAD` are 0."""
    return np.equal(labels[:, None], np.arange(n_classes)).astype(np.float64)


def joint_label(columns: Sequence[IntArray], sizes: Sequence[int]) -> IntArray:
    """One class number for a combination of axes; `UNREAD` where any of them is."""
    label = np.zeros_like(columns[0])
    for column, size in zip(columns, sizes, strict=True):
        label = label * size + column
    known = np.all([column != UNREAD for column in columns], axis=0)
    return np.where(known, label, UNREAD)


def _with_prompts(prompts: pd.DataFrame, images: pd.DataFrame, axes: Sequence[Axis]) -> pd.DataFrame:
    if images["image_id"].duplicated().any():
        twice = images.loc[images["image_id"].duplicated(), "image_id"].iloc[0]
        raise InputError(f"image {twice} is in the images table twice; give every image once")
    place = pd.Index(prompts["prompt_id"]).get_indexer(pd.Index(images["prompt_id"]))
    lost = images.loc[place < 0, "prompt_id"]
    if len(lost):
        raise InputError(f"{len(lost)} images have a prompt_id that is not among the prompts (first: {lost.iloc[0]})")
    facts = pd.DataFrame(
        {
            "kind": prompts["kind"],
            "benchmark": benchmarks_of(prompts),
            "cluster": clusters_of(prompts),
        }
    )
    identities = prompts["identity"].map(dict)
    for axis in axes:
        named = identities.map(lambda identity, name=axis.name: identity.get(name))
        facts[f"asked:{axis.name}"] = _class_numbers(axis, named)
    table = images[["image_id", "prompt_id", "index", "seed"]].reset_index(drop=True)
    table["replicate"] = images["replicate"].to_numpy() if "replicate" in images else 0
    return pd.concat([table, facts.take(place).reset_index(drop=True)], axis=1)


def _readings(
    attributes: pd.DataFrame, place: NDArray[np.intp], n_images: int, axes: Sequence[Axis]
) -> dict[str, NDArray[np.int64] | NDArray[np.bool_]]:
    """`place` is the row of each attribute's image, below 0 if there is none."""
    classifiers = sorted(attributes["classifier"].unique())
    if len(classifiers) > 1:
        raise InputError(f"the attributes come from several classifiers, {classifiers}; evaluate one at a time")
    # 'unsure' is a face whose class is in doubt; every other reason means that there is no one usable face.
    reasons = attributes["drop_reason"]
    faceless = (reasons.notna() & (reasons != "unsure")).to_numpy(dtype=bool)
    face = np.zeros(n_images, dtype=bool)
    face[place[place >= 0]] = True
    face[place[faceless & (place >= 0)]] = False
    columns: dict[str, NDArray[np.int64] | NDArray[np.bool_]] = {"face": face}
    for axis in axes:
        chosen = (attributes["axis"] == axis.name).to_numpy() & (place >= 0)
        if (np.bincount(place[chosen], minlength=n_images) > 1).any():
            raise InputError(f"an image has two rows for axis {axis.name!r} in the attributes table; keep one")
        read = np.full(n_images, UNREAD, dtype=np.int64)
        read[place[chosen]] = _class_numbers(axis, attributes.loc[chosen, "class"])
        columns[f"read:{axis.name}"] = read
    return columns


def _class_numbers(axis: Axis, names: "pd.Series[str]") -> IntArray:
    numbers = names.map({name: number for number, name in enumerate(axis.classes)})
    unknown = names[numbers.isna() & names.notna()]
    if len(unknown):
        raise InputError(f"axis {axis.name!r} has no class {unknown.iloc[0]!r}; its classes are {axis.classes}")
    labels: IntArray = numbers.astype(np.float64).fillna(UNREAD).to_numpy().astype(np.int64)
    return labels
