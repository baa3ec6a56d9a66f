"""Recall: how often an image shows the identity its prompt asked for, and what the others show.

The identity asked for comes from columns, never from the prompt's text ('male' is inside 'female'). An image
without a usable face is a miss: a model that hides the face has not shown the identity. But it may be the detector
that misses it, so misses are told apart: of every class asked for, `recall`, `no_face_share`, `unsure_share` and
`other_class_share` add up to 1.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import Axis
from popalign_core.evaluation.counts import UNREAD, FloatArray
from popalign_core.evaluation.gaps import gap_measure
from popalign_core.evaluation.measures import Measure
from popalign_core.evaluation.prevalence import share_measure

_NOBODY = "not measured: no prompt asks for"


def hits(labels: pd.DataFrame, axes: Sequence[Axis]) -> pd.DataFrame:
    """Whether what was read is what was asked.

    Args:
        labels: Rows with `read:AXIS` and `asked:AXIS` (see `counts.label_images`).
        axes: At least one.

    Returns:
        For every axis and for 'all', `asked` (bool) and `hit` (bool) under columns `(name, 'asked')` and
        `(name, 'hit')`. 'all' asks for every axis that the prompt names at once.
    """
    columns: dict[tuple[str, str], Any] = {}
    for axis in axes:
        asked: NDArray[np.int64] = labels[f"asked:{axis.name}"].to_numpy(dtype=np.int64)
        read: NDArray[np.int64] = labels[f"read:{axis.name}"].to_numpy(dtype=np.int64)
        columns[axis.name, "asked"] = asked != UNREAD
        columns[axis.name, "hit"] = (asked != UNREAD) & (asked == read)
    named = np.stack([columns[axis.name, "asked"] for axis in axes])
    shown = np.stack([columns[axis.name, "hit"] for axis in axes])
    columns["all", "asked"] = named.any(axis=0)
    columns["all", "hit"] = named.any(axis=0) & (shown | ~named).all(axis=0)
    return pd.DataFrame(columns, index=labels.index)


def recall_measures(counts: FloatArray, cells: pd.DataFrame, axes: Sequence[Axis]) -> list[Measure]:
    """Recall per axis, per class, per intersection and of all axes at once.

    What is estimated: the share of images that show what they were asked for, over prompts like these.

    Args:
        counts: `[R, P, C]`.
        cells: `[C]` rows with `face`, `read:AXIS` and `asked:AXIS`.
        axes: At least one.

    Returns:
        `recall` for every axis and for 'all'; `recall:CLASS` for every class of the axis; where prompts name several
        axes, `recall:CLASS+CLASS` under 'all' for every combination of their classes; `unsure_share`
        and `other_class_share` for every axis and class, `no_face_share` for every class; `no_face_gap` and
        `unsure_gap` for every axis. What no prompt asks for has n = 0.
    """
    found = hits(cells, axes)

    def measure(metric: str, axis: str, asked: NDArray[np.bool_], why: str) -> Measure:
        hit = found[axis, "hit"].to_numpy() & asked
        return share_measure(metric, axis, counts @ hit.astype(float), counts @ asked.astype(float), why)

    measures = [
        measure("recall", name, found[name, "asked"].to_numpy(), f"not measured: no prompt asks for {named}")
        for name, named in [*((axis.name, axis.name) for axis in axes), ("all", "anything")]
    ]
    for axis in axes:
        asked = cells[f"asked:{axis.name}"].to_numpy()
        for number, label in enumerate(axis.classes):
            measures.append(measure(f"recall:{label}", axis.name, asked == number, f"{_NOBODY} {label}"))
    named = [axis for axis in axes if found[axis.name, "asked"].any()]
    if len(named) > 1:
        for numbers in product(*(range(len(axis.classes)) for axis in named)):
            asked_all = [cells[f"asked:{axis.name}"].to_numpy() == n for axis, n in zip(named, numbers, strict=True)]
            label = "+".join(axis.classes[n] for axis, n in zip(named, numbers, strict=True))
            measures.append(measure(f"recall:{label}", "all", np.all(asked_all, axis=0), f"{_NOBODY} {label}"))
    return [*measures, *(miss for axis in axes for miss in _misses(counts, cells, axis))]


def _misses(counts: FloatArray, cells: pd.DataFrame, axis: Axis) -> Iterator[Measure]:
    """What is shown where recall has a miss, of the axis and of each class, and the gaps between classes."""
    read, asked = (cells[f"{what}:{axis.name}"].to_numpy(dtype=np.int64) for what in ("read", "asked"))
    has_face = cells["face"].to_numpy(dtype=bool) | (axis.of == "picture")
    shown = {
        "no_face": ~has_face & (read == UNREAD),
        "unsure": has_face & (read == UNREAD),
        "other_class": (read != UNREAD) & (read != asked),
    }
    if axis.of == "picture":
        del shown["no_face"]  # there is no face to miss
    groups = {"": (asked != UNREAD, axis.name)}
    groups |= {f":{label}": (asked == number, label) for number, label in enumerate(axis.classes)}
    for what, is_shown in shown.items():
        terms = {
            suffix: [counts @ (is_shown & chosen).astype(float), counts @ chosen.astype(float)]
            for suffix, (chosen, _) in groups.items()
        }
        for suffix, (part, whole) in terms.items():
            if what == "no_face" and not suffix:
                continue  # `no_face_share` of all images has that
            yield share_measure(f"{what}_share{suffix}", axis.name, part, whole, f"{_NOBODY} {groups[suffix][1]}")
        if what != "other_class":
            by_class = [np.stack(parts, axis=-1) for suffix, parts in terms.items() if suffix]
            yield gap_measure(f"{what}_gap", axis.name, by_class, of_shares=True, width=1.0)
