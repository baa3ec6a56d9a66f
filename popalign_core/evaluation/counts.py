"""From tables to count matrices: what was asked of each image, what it was read as, how many of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from popalign_core.config import Axis
from popalign_core.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Statistic = Callable[[FloatArray], FloatArray]

UNREAD = -1
"""Label of an image whose class is not known, or of an axis its prompt does not name."""


@dataclass(frozen=True)
class Measure:
    """One number computed from counts.

    Attributes:
        metric: Name in the metrics table.
        axis: Axis, 'all' for the joint of all axes, '' if none.
        statistic: `[..., P, C]` counts (prompts x cells) to `[...]`.
        counted: `[C]`, 1 for the cells whose images it is about.
        floor: `[P, C]` to the value a perfectly fair sampler would be expected to show; None if not a discrepancy.
        bounds: Least and largest possible value.
    """

    metric: str
    axis: str
    statistic: Statistic
    counted: FloatArray
    floor: Callable[[FloatArray], float] | None = None
    bounds: tuple[float, float] = (0.0, 1.0)

    def n(self, counts: FloatArray) -> int:
        """Number of images behind it, of counts `[P, C]`."""
        return round(float((counts @ self.counted).sum()))


def label_images(
    prompts: pd.DataFrame, images: pd.DataFrame, attributes: pd.DataFrame, axes: Sequence[Axis]
) -> pd.DataFrame:
    """One row an image, with whole numbers for classes.

    Args:
        prompts: Prompts table; may hold prompts without images.
        images: image_id, prompt_id, index, seed.
        attributes: Attributes table, one row an (image, axis) for every image of a neutral or specific prompt.
        axes: Their order gives the class numbers.

    Returns:
        image_id, prompt_id, index, seed, kind, `cluster` (the prompt, or the neutral prompt it was made from: its
        variants are not independent), `face` (one usable face), and for every axis `read:AXIS` and `asked:AXIS`,
        the class's place in the axis or `UNREAD`.

    Raises:
        InputError: When an image has no prompt, occurs twice or has no attributes, a class is unknown, or two
            classifiers are mixed.
    """
    table = _with_prompts(prompts, images)
    readings = _readings(attributes, axes)
    people = table["kind"] != "generic"
    unread = table.loc[people & ~table["image_id"].isin(readings.index), "image_id"]
    if len(unread):
        raise InputError(
            f"{len(unread)} images have no row in the attributes table (first: {unread.iloc[0]}); "
            "read the attributes of the same images that are evaluated"
        )
    table = table.join(readings, on="image_id")
    for axis in axes:
        table[f"read:{axis.name}"] = table[f"read:{axis.name}"].fillna(UNREAD).astype(np.int64)
        asked = [_class_number(axis, identity.get(axis.name)) for identity in table["identity"].map(dict)]
        table[f"asked:{axis.name}"] = np.asarray(asked, dtype=np.int64)
    table["face"] = table["face"].astype("boolean").fillna(False).astype(bool)
    return table.drop(columns="identity")


def count_cells(labels: pd.DataFrame, columns: Sequence[str]) -> tuple[FloatArray, pd.DataFrame]:
    """Count images by cluster and by cell, a cell being a combination of labels that occurs.

    Args:
        labels: From `label_images`, at least one row.
        columns: Which labels make a cell.

    Returns:
        Counts `[P, C]` (clusters in order of their id) and the labels of the C cells.
    """
    cells = labels[list(columns)].drop_duplicates().sort_values(list(columns)).reset_index(drop=True)
    cell = pd.MultiIndex.from_frame(cells).get_indexer(pd.MultiIndex.from_frame(labels[list(columns)]))
    clusters, cluster = np.unique(labels["cluster"].to_numpy(dtype=str), return_inverse=True)
    size = (len(clusters), len(cells))
    counts = np.bincount(cluster * size[1] + cell, minlength=size[0] * size[1]).reshape(size)
    return counts.astype(np.float64), cells


def indicator(labels: IntArray, n_classes: int) -> FloatArray:
    """`[C]` class numbers to a 0/1 matrix `[C, K]`; rows of `UNREAD` are 0."""
    return np.equal(labels[:, None], np.arange(n_classes)).astype(np.float64)


def share_measure(metric: str, axis: str, part: ArrayLike, whole: ArrayLike) -> Measure:
    """Images in the cells of `part` over images in the cells of `whole`, both `[C]` of 0 and 1."""
    chosen, everything = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)

    def statistic(counts: FloatArray) -> FloatArray:
        pooled = counts.sum(axis=-2)
        total = np.asarray(pooled @ everything)
        share: FloatArray = np.divide(pooled @ chosen, total, out=np.full_like(total, np.nan), where=total > 0)
        return share

    return Measure(metric, axis, statistic, everything)


def difference(before: Measure, after: Measure) -> Measure:
    """The change of a measure between two systems counted in the same cells; n is the images read in both."""
    width = after.bounds[1] - after.bounds[0]
    return Measure(
        after.metric,
        after.axis,
        lambda counts: after.statistic(counts) - before.statistic(counts),
        np.minimum(before.counted, after.counted),
        bounds=(-width, width),
    )


def joint_label(columns: Sequence[IntArray], sizes: Sequence[int]) -> IntArray:
    """One class number for a combination of axes; `UNREAD` where any of them is."""
    label = np.zeros_like(columns[0])
    for column, size in zip(columns, sizes, strict=True):
        label = label * size + column
    known = np.all([column != UNREAD for column in columns], axis=0)
    return np.where(known, label, UNREAD)


def _with_prompts(prompts: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    if images["image_id"].duplicated().any():
        twice = images.loc[images["image_id"].duplicated(), "image_id"].iloc[0]
        raise InputError(f"image {twice} is in the images table twice; give every image once")
    wanted = prompts[["prompt_id", "kind", "parent_id", "identity"]]
    table = images[["image_id", "prompt_id", "index", "seed"]].merge(wanted, on="prompt_id", how="left")
    lost = table.loc[table["kind"].isna(), "prompt_id"]
    if len(lost):
        raise InputError(f"{len(lost)} images have a prompt_id that is not among the prompts (first: {lost.iloc[0]})")
    table["cluster"] = table["parent_id"].where(table["parent_id"].notna(), table["prompt_id"])
    return table.drop(columns="parent_id")


def _readings(attributes: pd.DataFrame, axes: Sequence[Axis]) -> pd.DataFrame:
    classifiers = sorted(attributes["classifier"].unique())
    if len(classifiers) > 1:
        raise InputError(f"the attributes come from several classifiers, {classifiers}; evaluate one at a time")
    # 'unsure' is a face whose class is in doubt; every other reason means that there is no one usable face.
    faceless = attributes["drop_reason"].notna() & (attributes["drop_reason"] != "unsure")
    columns: dict[str, Any] = {"face": ~faceless.groupby(attributes["image_id"]).any()}
    for axis in axes:
        rows = attributes[attributes["axis"] == axis.name]
        numbers = [_class_number(axis, name) for name in rows["class"]]
        columns[f"read:{axis.name}"] = pd.Series(numbers, index=rows["image_id"], dtype=np.int64)
        if rows["image_id"].duplicated().any():
            raise InputError(f"an image has two rows for axis {axis.name!r} in the attributes table; keep one")
    return pd.DataFrame(columns)


def _class_number(axis: Axis, name: object) -> int:
    if name is None or pd.isna(name):  # type: ignore[call-overload]
        return UNREAD
    if name not in axis.classes:
        raise InputError(f"axis {axis.name!r} has no class {name!r}; its classes are {axis.classes}")
    return axis.classes.index(str(name))
