"""What a page cannot say; what is true of one only where its tables hold it is said only there."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from popalign_core.evaluation.paired import ONLY_AXIS
from popalign_core.report.measure_names import FAIRNESS

_LARGEST_FLOOR = 0.1
"""A pooled discrepancy that a perfectly fair model shows by chance; beyond it nothing is learnt about a model."""

_ALWAYS = (
    "Attributes are a classifier's reading of perceived appearance in an image. They are not anyone's identity.",
    "Gender is read as one of two classes and race as one of a few broad ones. People whom these classes do not fit "
    "are not measured, and a discrepancy of 0 does not mean that they are represented.",
    "Age, disability, religion, dress, dignity of the scene and everything else that no axis above names is not "
    "measured. A stereotype can live in an image whose classes are balanced.",
)
_EMBEDDED = (
    "If the model is the embedded ‘portraits’ demonstration, its occupations and their bias are invented: it makes no "
    "claim about real people, and its numbers say nothing about other models."
)


def few_images(rows: Iterable[Mapping[Any, Any]]) -> list[str]:
    """What to say of rows of metrics that rest on too few images to mean anything; nothing of others."""
    floors = [row["floor"] for row in rows if row["metric"] == FAIRNESS[0] and not pd.isna(row["floor"])]
    if max(floors, default=0.0) <= _LARGEST_FLOOR:
        return []
    return [
        f"These figures mean nothing: with so few images a perfectly fair model would show a discrepancy of "
        f"{max(floors):.2f} too. Do not judge a model by them."
    ]


def limits(metrics: pd.DataFrame, comparison: pd.DataFrame, n_seeds: int = 1) -> Iterator[str]:
    """The sentences, for what these tables hold."""
    yield from _ALWAYS
    is_corrected = metrics["metric"].str.contains("_corrected").any()
    errors = "The classifier errs, and may err more on some groups than on others; its errors move the shares shown."
    if is_corrected:
        yield (
            f"{errors} Rows “corrected for classifier error and missed faces” apply the error rates measured "
            "on labelled images, and their intervals include the uncertainty of these rates. They are wrong where the "
            "classifier errs, or misses faces, at other rates. All other rows and intervals are uncorrected."
        )
    else:
        yield f"{errors} No interval here covers them."
    yield (
        "Images without a usable face are not part of the shares; the shares are right if those images would "
        "show the same. They are counted above. The rows “if no unread image shows it” and “if every unread image "
        "shows it” bound how far they could move a share."
    )
    seeds = f"; they come from {n_seeds} seeds and say little about" if n_seeds > 1 else ". They do not cover"
    yield f"Intervals cover the choice of prompts and of images{seeds} another training run."
    if "p_adjusted" in comparison and comparison["p_adjusted"].notna().any():
        counted = comparison[comparison["p_adjusted"].notna()]
        n_rows = int((~counted["note"].str.contains(ONLY_AXIS, regex=False)).sum())
        yield (
            f"p-values are from paired permutation tests and adjusted (Holm) for the {n_rows} headline differences "
            "of this page. Intervals, and differences without a p-value, are not adjusted: of twenty, one may exclude "
            "zero by chance."
        )
    else:
        yield "Intervals are not adjusted for the number of rows compared: of twenty, one may exclude zero by chance."
    yield _EMBEDDED
