"""What people's labels say: how far they agree on each axis, and how often each class was seen.

Labels come as rows with `rater, image_id, axis, class, seconds`.
"""

from dataclasses import dataclass

import pandas as pd

from popalign_core.config.review import CANNOT_TELL, LabelConfig
from popalign_core.review.vote_results import agree


@dataclass(frozen=True)
class LabelResults:
    """Tables of a study.

    Attributes:
        agreement: axis, alpha (nominal), ci_low, ci_high, n_pairs (images with two labels or more), note. Those who
            could not tell do not enter.
        counts: axis, class, n labels, n_images (that most of their labellers saw so); `cannot tell` is the last class.
        n_labels: In all.
        n_raters: Who gave them.
    """

    agreement: pd.DataFrame
    counts: pd.DataFrame
    n_labels: int
    n_raters: int


def evaluate_labels(labels: pd.DataFrame, config: LabelConfig, confidence: float = 0.95) -> LabelResults:
    """All results."""
    agreement, counts = [], []
    for question in config.questions:
        given = labels[labels["axis"] == question.axis].rename(columns={"image_id": "pair_id", "class": "answer"})
        answered = given[given["answer"] != CANNOT_TELL]
        found = agree(answered, confidence, question.answers, "nominal")
        agreement.append({"axis": question.axis, **found})
        most = _most_said(given)
        for name in (*question.answers, CANNOT_TELL):
            n, n_images = int((given["answer"] == name).sum()), int((most == name).sum())
            counts.append({"axis": question.axis, "class": name, "n": n, "n_images": n_images})
    n_raters = int(labels["rater"].nunique())
    return LabelResults(pd.DataFrame(agreement), pd.DataFrame(counts), len(labels), n_raters)


def _most_said(given: pd.DataFrame) -> pd.Series:
    """The answer that leads for each image; images with two leaders are left out."""
    table = pd.crosstab(given["pair_id"], given["answer"])
    if table.empty:
        return pd.Series(dtype=object)
    leads = table.eq(table.max(axis=1), axis=0).sum(axis=1) == 1
    return table[leads].idxmax(axis=1) if leads.any() else pd.Series(dtype=object)
