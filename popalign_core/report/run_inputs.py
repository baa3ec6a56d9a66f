"""What a report is made of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import Axis
from popalign_core.errors import InputError

Pictures = NDArray[np.uint8]


COST_COLUMNS = ("system", "what", "value", "unit")


def empty(columns: Iterable[str]) -> pd.DataFrame:
    """A table without rows."""
    return pd.DataFrame(columns=list(columns))


@dataclass(frozen=True, kw_only=True)
class TwoSystems:
    """A base and an aligned system on the same prompts and seeds, in numbers: what a verdict rests on.

    Attributes:
        base: Name of the base system, as in the tables.
        aligned: Name of the aligned system.
        axes: The axes, with classes and targets.
        metrics: Metrics tables of both systems, one below the other.
        comparison: From `evaluation.metrics.compare_systems`.
        confidence: Of the intervals in the tables.
    """

    base: str
    aligned: str
    axes: Sequence[Axis]
    metrics: pd.DataFrame
    comparison: pd.DataFrame
    confidence: float = 0.95


@dataclass(frozen=True, kw_only=True)
class ReportInputs(TwoSystems):
    """The same with pictures and all else that a page shows.

    Attributes:
        title: Heading of the page.
        per_prompt: From `evaluation.metrics.per_prompt_table` of both systems, one below the other.
        attributes: System name to its attributes table (no pixels needed); for what was dropped and why.
        grids: Prompt to (before, after), each `[n, H, W, 3]` uint8; the i-th of both has the same seed.
        training_log: step, name, value; may be empty.
        drops: stage, reason, n of what the making of the training data left out; may be empty.
        reproducibility: What to print so that the run can be repeated: keys, versions, the command.
        costs: system, what, value, unit: what both systems cost; may be empty.
        notes: Further sentences for the section on limits.
    """

    title: str
    per_prompt: pd.DataFrame
    attributes: Mapping[str, pd.DataFrame]
    grids: Mapping[str, tuple[Pictures, Pictures]]
    training_log: pd.DataFrame
    drops: pd.DataFrame
    reproducibility: Mapping[str, str]
    costs: pd.DataFrame = field(default_factory=lambda: empty(COST_COLUMNS))
    notes: Sequence[str] = ()


def check_report_inputs(inputs: ReportInputs) -> None:
    """Refuse what would give a wrong page.

    Raises:
        InputError: When a system has no metrics, the comparison is empty or a pair of grids does not match.
    """
    systems = set(inputs.metrics["system"])
    for name in (inputs.base, inputs.aligned):
        if name not in systems:
            raise InputError(f"the metrics hold {sorted(systems)}, not {name!r}; evaluate it first")
    if inputs.comparison.empty:
        raise InputError("the comparison is empty; make it with evaluation.metrics.compare_systems")
    for prompt, (before, after) in inputs.grids.items():
        for pictures in (before, after):
            check_pictures(prompt, pictures)
        if len(before) != len(after):
            raise InputError(f"grid {prompt!r} has {len(before)} pictures before and {len(after)} after; pair them")


def check_pictures(prompt: str, pictures: Pictures) -> None:
    """Refuse pictures that are not `[n, H, W, 3]` uint8.

    Raises:
        InputError: Names the prompt and what was given.
    """
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
        raise InputError(
            f"grid {prompt!r} must be [n, H, W, 3] uint8, got {pictures.shape} {pictures.dtype}; convert it"
        )
