"""How often a classifier is wrong, and in whose favour: its confusion matrix on labelled images, with intervals.

Labels come for free with identity-specific prompts, as far as the model samples what it is asked for: what it samples
wrongly counts as the classifier's mistake. People's labels have no such doubt.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.attributes.filtering import filter_readings
from popalign_core.attributes.people_labels import PeopleClassifier
from popalign_core.config import AttributesConfig, Axis, EvaluationConfig
from popalign_core.errors import InputError
from popalign_core.prompts.benchmarks import clusters_of

FloatArray = NDArray[np.float64]

UNREAD_CLASS = ""
"""`read_class` of images that no class was read off: dropped, or unsure."""

_PRIOR = 0.5
"""Jeffreys: so that what never happened in a few images is not impossible."""


def asked_classes(prompts: pd.DataFrame, images: pd.DataFrame, axes: Sequence[Axis]) -> pd.DataFrame:
    """What the images of identity-specific prompts should show.

    Args:
        prompts: A `prompts` table.
        images: `image_id` and `prompt_id` at least.
        axes: Axes that no prompt names are left out.

    Returns:
        `image_id`, `cluster` (the prompt they were made from), `axis`, `class`.

    Raises:
        InputError: When a prompt asks for a class that its axis does not have.
    """
    joined = _with_clusters(prompts[prompts["kind"] == "specific"], images)
    identities = [dict(identity) for identity in joined["identity"]]
    rows = [
        (image_id, cluster, axis.name, identity[axis.name])
        for image_id, cluster, identity in zip(joined["image_id"], joined["cluster"], identities, strict=True)
        for axis in axes
        if axis.name in identity
    ]
    return _checked_truth(rows, axes)


def said_classes(
    labels: pd.DataFrame, prompts: pd.DataFrame, images: pd.DataFrame, axes: Sequence[Axis]
) -> pd.DataFrame:
    """What most people saw in the images; ties and images without labels are left out.

    Args:
        labels: As `people.read_labels` gives them.
        prompts: A `prompts` table.
        images: `image_id` and `prompt_id` at least.
        axes: The axes.

    Returns:
        As `asked_classes`.

    Raises:
        InputError: When a label is none of its axis's classes.
    """
    joined = _with_clusters(prompts, images)
    classifier = PeopleClassifier("people", "", {axis.name: axis.classes for axis in axes}, labels)
    ids = joined["image_id"].tolist()
    seen = filter_readings(
        classifier.read([np.empty((0, 0, 3), np.uint8)] * len(ids), ids), ids, axes, AttributesConfig(), "people"
    )
    known = seen[seen["class"].notna()].merge(joined[["image_id", "cluster"]], on="image_id")
    rows = list(known[["image_id", "cluster", "axis", "class"]].itertuples(index=False, name=None))
    return _checked_truth(rows, axes)


def calibrate(
    truth: pd.DataFrame, attributes: pd.DataFrame, axes: Sequence[Axis], config: EvaluationConfig
) -> pd.DataFrame:
    """The confusion matrices of one classifier.

    Args:
        truth: From `asked_classes` or `said_classes`.
        attributes: Table `attributes` of the same images.
        axes: Axes without labels are left out.
        config: Size, confidence and seed of the bootstrap: prompts are drawn again, and of those the images
            (Dirichlet, Jeffreys prior).

    Returns:
        Table `calibration`, a row an axis, true class and read class. Of the classes `share` is P(read | true, read at
        all), and sums to 1; of `UNREAD_CLASS` it is P(not read | true). Both are NaN where no such image was seen,
        the interval also where those that were seen come from a single prompt.

    Raises:
        InputError: When there are no labels, a labelled image was not read, or several classifiers read.
    """
    classifiers = sorted(attributes["classifier"].unique())
    if len(classifiers) != 1:
        raise InputError(f"the attributes come from {len(classifiers)} classifiers, {classifiers}; calibrate one")
    read = attributes.rename(columns={"class": "read_class"})[["image_id", "axis", "read_class"]]
    joined = truth.merge(read, on=["image_id", "axis"], how="left", indicator="found")
    lost = joined.loc[joined["found"] != "both", "image_id"]
    if len(lost) or not len(joined):
        raise InputError(
            f"of {len(joined)} labels {len(lost)} are of images that were not read{_first(lost)}; calibrate with the "
            "attributes of the same images, and with identity-specific prompts or labels"
        )
    rows = [row for axis in axes for row in _rows(axis, joined[joined["axis"] == axis.name], config)]
    table = pd.DataFrame(rows, columns=["axis", "true_class", "read_class", "n", "share", "ci_low", "ci_high"])
    table.insert(0, "classifier", classifiers[0])
    return table


def confusion_matrix(table: pd.DataFrame, axis: Axis) -> FloatArray:
    """One axis of a `calibration` table as `fairness.corrected_prevalence` takes it.

    Args:
        table: From `calibrate`.
        axis: Its classes give the order.

    Returns:
        `[K, K]`, `confusion[i, j] = P(read j | true i)`; rows sum to 1.

    Raises:
        InputError: When the axis was not calibrated, or no image of a class was read.
    """
    rows = table[(table["axis"] == axis.name) & (table["read_class"] != UNREAD_CLASS)]
    counts = rows.pivot(index="true_class", columns="read_class", values="n")
    counts = counts.reindex(index=list(axis.classes), columns=list(axis.classes))
    if not len(rows) or counts.isna().to_numpy().any():
        raise InputError(
            f"the calibration has not all classes {axis.classes} of the axis {axis.name!r}; calibrate again"
        )
    totals = counts.sum(axis=1)
    unseen = [name for name in axis.classes if totals[name] == 0]
    if unseen:
        raise InputError(
            f"no image of {unseen} on the axis {axis.name!r} was read; calibrate with images of each class"
        )
    matrix: FloatArray = counts.div(totals, axis=0).to_numpy(dtype=np.float64)
    return matrix


def _with_clusters(prompts: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    return images[["image_id", "prompt_id"]].merge(prompts.assign(cluster=clusters_of(prompts)), on="prompt_id")


def _checked_truth(rows: Sequence[tuple[str, str, str, str]], axes: Sequence[Axis]) -> pd.DataFrame:
    known = {(axis.name, name) for axis in axes for name in axis.classes}
    unknown = sorted({(axis, name) for _, _, axis, name in rows} - known)
    if unknown:
        raise InputError(f"labels {unknown} are not among the classes of the axes; see the spelling in both")
    return pd.DataFrame(rows, columns=["image_id", "cluster", "axis", "class"], dtype=object)


def _rows(
    axis: Axis, joined: pd.DataFrame, config: EvaluationConfig
) -> list[tuple[str, str, str, int, float, float, float]]:
    if joined.empty:
        return []
    counts = _count(axis, joined)
    pooled = counts.sum(axis=0)
    shares, draws = _shares(pooled), _resampled_shares(counts, config)
    tails = [(1 - config.confidence) / 2, (1 + config.confidence) / 2]
    low, high = np.quantile(draws, tails, axis=0)
    several = (counts.sum(axis=2) > 0).sum(axis=0) > 1
    low, high = (
        np.where(several[:, None], bound, np.nan) for bound in (np.minimum(low, shares), np.maximum(high, shares))
    )
    names = [*axis.classes, UNREAD_CLASS]
    return [
        (axis.name, true, read, int(pooled[i, j]), float(shares[i, j]), float(low[i, j]), float(high[i, j]))
        for i, true in enumerate(axis.classes)
        for j, read in enumerate(names)
    ]


def _count(axis: Axis, joined: pd.DataFrame) -> FloatArray:
    """`[P, K, K + 1]` images of each prompt, true class and read class, the last for unread ones."""
    k, place = len(axis.classes), {name: number for number, name in enumerate(axis.classes)}
    clusters, cluster = np.unique(joined["cluster"].to_numpy(dtype=str), return_inverse=True)
    true = joined["class"].map(place).to_numpy()
    read = joined["read_class"].map(place).fillna(k).astype(int).to_numpy()
    counts = np.zeros((len(clusters), k, k + 1))
    np.add.at(counts, (cluster, true, read), 1)
    return counts


def _shares(counts: FloatArray) -> FloatArray:
    """`[..., K, K + 1]` counts to shares: of the images read for each class, of all for the last column."""
    read = counts[..., :-1].sum(axis=-1, keepdims=True)
    total = counts.sum(axis=-1, keepdims=True)
    parts = ((counts[..., :-1], read), (counts[..., -1:], total))
    return np.concatenate(
        [np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0) for part, whole in parts], axis=-1
    )


def _resampled_shares(counts: FloatArray, config: EvaluationConfig) -> FloatArray:
    """`[R, K, K + 1]`."""
    generator = np.random.default_rng(config.seed)
    n_prompts = len(counts)
    times = generator.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=config.n_bootstrap)
    pooled = np.tensordot(times.astype(np.float64), counts, axes=1)
    # shares of gamma draws are a Dirichlet draw, of any subset of the columns too
    return _shares(generator.standard_gamma(pooled + _PRIOR))


def _first(ids: "pd.Series[str]") -> str:
    return f" (first: {ids.iloc[0]})" if len(ids) else ""
