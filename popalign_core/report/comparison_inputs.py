"""What a page about several systems, or about a sweep of one parameter, is made of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.evaluation.metrics import READING_COLUMNS
from popalign_core.evaluation.wins import COLUMNS as WIN_COLUMNS

Images = NDArray[np.uint8]
"""`[n, H, W, 3]`, or one of them."""

COST_COLUMNS = ("system", "what", "value", "unit")
DROP_COLUMNS = ("system", "reason", "n", "n_images")
LOG_COLUMNS = ("step", "name", "value")
TRAINING_DROP_COLUMNS = ("stage", "reason", "n")
PROMPT_COLUMNS = (
    "system", "prompt_id", "text", "axis", "n", "n_images", "discrepancy", "floor", "leading", "leading_share",
)  # fmt: skip
POINT_COLUMNS = (
    "parameter", "value", "order", "benchmark", "metric", "axis", "estimate", "ci_low", "ci_high", "floor", "note",
)  # fmt: skip


def empty(columns: Iterable[str]) -> pd.DataFrame:
    """A table without rows."""
    return pd.DataFrame(columns=list(columns))


@dataclass(frozen=True, kw_only=True)
class ComparisonInputs:
    """Plain tables and pictures of two or more systems on the same prompts and seeds.

    A verdict rests on reference, systems, axes, metrics, comparison and confidence; a page shows the rest too.

    Attributes:
        title: Heading of the page.
        model: The base model's name; '' where the page does not say it.
        preset: The preset that the configuration is; '' for one of its own.
        reference: The system that the others are compared with.
        systems: All systems in the order of the tables, the reference among them.
        axes: The axes, with classes and targets.
        metrics: Metrics tables of all systems, one below the other; what could not be measured is a row with its
            reason in `note`.
        comparison: Every other system minus the reference, from `evaluation.metrics.compare_all`.
        wins: From `evaluation.wins.win_rates`; may be empty.
        readings: From `evaluation.metrics.of_reading`, of every system and way of reading its images; may be empty.
        per_prompt: From `evaluation.metrics.per_prompt_table` of all systems, one below the other; may be empty.
        grids: Prompt to system to pictures, `[n, H, W, 3]` uint8; the i-th of every system has the same seed.
        drops: system, reason, n, n_images: evaluation images that no share is read off, and why; may be empty.
        costs: system, what, value, unit: what a system costs, such as seconds an image; may be empty.
        training_log: step, name, value of the training that this run did; empty where it did none, or several.
        training_drops: stage, reason, n of what the making of its training data left out; may be empty.
        scale: Size of the benchmarks, of what the configuration says; below 1 this is a quick look.
        n_seeds: Replicates of every system.
        elsewhere: Systems whose pictures were made elsewhere: with other seeds, and perhaps not of all prompts.
        reproducibility: What to print so that the run can be repeated: keys, versions, the command.
        notes: Further sentences for the section on limits.
        confidence: Of the intervals in the tables.
    """

    title: str = "PopAlign"
    model: str = ""
    preset: str = ""
    reference: str
    systems: Sequence[str]
    axes: Sequence[Axis]
    metrics: pd.DataFrame
    comparison: pd.DataFrame
    per_prompt: pd.DataFrame = field(default_factory=lambda: empty(PROMPT_COLUMNS))
    readings: pd.DataFrame = field(default_factory=lambda: empty(READING_COLUMNS))
    wins: pd.DataFrame = field(default_factory=lambda: empty(WIN_COLUMNS))
    grids: Mapping[str, Mapping[str, Images]] = field(default_factory=dict)
    drops: pd.DataFrame = field(default_factory=lambda: empty(DROP_COLUMNS))
    costs: pd.DataFrame = field(default_factory=lambda: empty(COST_COLUMNS))
    training_log: pd.DataFrame = field(default_factory=lambda: empty(LOG_COLUMNS))
    training_drops: pd.DataFrame = field(default_factory=lambda: empty(TRAINING_DROP_COLUMNS))
    scale: float = 1.0
    n_seeds: int = 1
    elsewhere: Sequence[str] = ()
    reproducibility: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    confidence: float = 0.95

    @property
    def others(self) -> list[str]:
        """The systems that are compared with the reference."""
        return [name for name in self.systems if name != self.reference]


@dataclass(frozen=True)
class SweepInputs:
    """What one parameter does to fairness and quality.

    Attributes:
        title: Heading of the page.
        points: parameter, value (as text), order, benchmark, metric, axis, estimate, ci_low, ci_high, floor, note; a
            further column `system` where several systems were swept.
        axes: The axes.
        reference: The value that the configuration has, marked in every chart; '' for none.
        reproducibility: What to print so that the sweep can be repeated.
        confidence: Of the intervals.
        scale: As of `ComparisonInputs`.
    """

    title: str
    points: pd.DataFrame
    axes: Sequence[Axis]
    reference: str = ""
    reproducibility: Mapping[str, str] = field(default_factory=dict)
    confidence: float = 0.95
    scale: float = 1.0


def check_comparison(inputs: ComparisonInputs) -> None:
    """Refuse what would give a wrong page.

    Raises:
        InputError: When the reference is not among the systems, a system has no metrics, the comparison is empty or
            with another, or the pictures of a prompt do not match.
    """
    if inputs.reference not in inputs.systems or not inputs.others:
        raise InputError(
            f"systems are {list(inputs.systems)} and the reference is {inputs.reference!r}; name the reference among "
            "them and one more to compare with it"
        )
    missing = sorted(set(inputs.systems) - set(inputs.metrics["system"]))
    if missing:
        raise InputError(f"the metrics do not hold {missing[0]!r}; evaluate it first")
    if inputs.comparison.empty:
        raise InputError("the comparison is empty; make it with evaluation.paired.compare_all")
    references = sorted(set(inputs.comparison["reference"]) - {inputs.reference})
    if references:
        raise InputError(f"the comparison is with {references}, not with {inputs.reference!r}; compare with it")
    for prompt, sides in inputs.grids.items():
        sizes = set()
        for pictures in sides.values():
            _check_pictures(prompt, pictures)
            sizes.add(len(pictures))
        if len(sizes) > 1:
            raise InputError(f"grid {prompt!r} has {sorted(sizes)} images by system; show the same seeds of all")


def check_sweep(inputs: SweepInputs) -> None:
    """Refuse an empty sweep, or points of several parameters.

    Raises:
        InputError: Says which.
    """
    parameters = sorted(set(inputs.points["parameter"]))
    if len(parameters) != 1:
        raise InputError(f"a sweep is over one parameter, got {parameters}; make one page for each")
    if not np.isfinite(inputs.points["estimate"].astype(float)).any():
        raise InputError(f"nothing was measured at any value of {parameters[0]!r}; see the notes of the points")


def _check_pictures(prompt: str, pictures: Images) -> None:
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
        raise InputError(
            f"grid {prompt!r} must be [n, H, W, 3] uint8, got {pictures.shape} {pictures.dtype}; convert it"
        )
