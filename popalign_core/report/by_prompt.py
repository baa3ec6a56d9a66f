"""Prompts one by one: a model can look fair on the whole while every prompt leans its own way."""

from collections.abc import Sequence

import pandas as pd

from popalign_core.config import Axis
from popalign_core.evaluation.fairness import discrepancies

MOST_PROMPTS = 20
"""Prompts drawn; the tables have all."""


def axis_rows(per_prompt: pd.DataFrame, axis: Axis) -> pd.DataFrame:
    """The rows of one axis."""
    return per_prompt[per_prompt["axis"] == axis.name]


def paired_prompts(per_prompt: pd.DataFrame, axis: Axis, first: str, second: str) -> list[tuple[str, float, float]]:
    """(what tells the prompt from the others, discrepancy of both systems), the most biased under the first first."""
    table = axis_rows(per_prompt, axis)
    sides = [table[table["system"] == name].set_index("prompt_id") for name in (first, second)]
    both = sides[0].join(sides[1]["discrepancy"].rename("other"), how="inner")
    both = both.sort_values(["discrepancy", "text"], ascending=[False, True])
    subjects = without_common_start([str(text) for text in both["text"]])
    return list(zip(subjects, both["discrepancy"].tolist(), both["other"].tolist(), strict=True))


def largest_discrepancy(axis: Axis) -> float:
    """Of all mass on one class, the least wanted one."""
    target = axis.shares()
    return max(float(discrepancies([float(i == j) for j in range(len(target))], target)) for i in range(len(target)))


def without_common_start(texts: Sequence[str]) -> list[str]:
    """Texts without the words that all begin with: they would leave no room for what tells the prompts apart."""
    if len(texts) < 2:
        return list(texts)
    start = min(texts, key=len)
    while start and not (all(text.startswith(start) and text != start for text in texts) and start.endswith(" ")):
        start = start[:-1]
    rest = [text[len(start) :] for text in texts]
    return [text.removeprefix("an ").removeprefix("a ") for text in rest]
