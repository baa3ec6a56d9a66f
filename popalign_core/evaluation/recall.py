"""Recall: how often an image shows the identity its prompt asked for.

The identity asked for comes from columns, never from the prompt's text ('male' is inside 'female'). An image
without a usable face is a miss: a model that hides the face has not shown the identity.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import Axis
from popalign_core.evaluation.counts import UNREAD, Measure, share_measure


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


def recall_measures(cells: pd.DataFrame, axes: Sequence[Axis]) -> list[Measure]:
    """Recall per axis, per class and of all axes at once.

    Args:
        cells: `[C]` rows with `read:AXIS` and `asked:AXIS`.
        axes: At least one.

    Returns:
        `recall` for every axis and for 'all'; `recall:CLASS` for every class that some prompt asks for.
    """
    found = hits(cells, axes)
    measures = []
    for name in [*(axis.name for axis in axes), "all"]:
        measures.append(share_measure("recall", name, found[name, "hit"], found[name, "asked"]))
    for axis in axes:
        asked = cells[f"asked:{axis.name}"]
        for number, label in enumerate(axis.classes):
            if (asked == number).any():
                chosen = asked == number
                hit = found[axis.name, "hit"] & chosen
                measures.append(share_measure(f"recall:{label}", axis.name, hit, chosen))
    return measures
