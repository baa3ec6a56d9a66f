"""Do the intervals hold what they promise? Populations with known truth, measured as real ones are.

A population is a benchmark: prompts drawn from all prompts there could be (class shares that vary between prompts,
Dirichlet or logit-normal), images drawn from each prompt, perhaps read by a classifier that errs and whose mistakes
were counted in a calibration of limited size. An interval should hold the truth in 95 of 100 of them, and a test should
find a difference between two equal systems in 5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from popalign_core.config import Axis, EvaluationConfig
from popalign_core.evaluation.confusion import UNREAD_CLASS
from popalign_core.evaluation.correction import Calibrated, calibrated_axes
from popalign_core.evaluation.counts import UNREAD, FloatArray
from popalign_core.evaluation.fairness import class_shares, discrepancies
from popalign_core.evaluation.measures import Measure, worst_mean
from popalign_core.evaluation.paired import permutation_p_values
from popalign_core.evaluation.prevalence import neutral_measures

METRICS = (
    *("discrepancy_pooled", "discrepancy_per_prompt", "discrepancy_worst10", "kl", "entropy", "parity_gap", "bias"),
    *("share:c0", "share_corrected:c0", "discrepancy_corrected"),
)
CHANGES = ("discrepancy_pooled", "discrepancy_per_prompt", "share:c0", "discrepancy_corrected")
"""Metrics whose difference between two systems is looked at too."""

TESTED = ("discrepancy_pooled", "discrepancy_per_prompt", "share:c0")
"""Metrics whose test is looked at."""
TESTED_CORRECTED = ("share_corrected:c0", "discrepancy_corrected")
N_PERMUTATIONS = 999
"""Of a test; fewer than of a real one, as there are many tests."""

_CLASSIFIER = "simulated@1"
_TRUTH_DRAWS = 200_000


@dataclass(frozen=True)
class SimulationSetting:
    """One kind of population.

    Attributes:
        shares: `[K]` class shares of a typical prompt, before its own deviation.
        n_prompts: Prompts of the benchmark.
        n_images: Images of each.
        spread: How much prompts differ: of a Dirichlet, 1 / (1 + concentration); of a logit-normal, its deviation.
        is_logit: A logit-normal instead of a Dirichlet.
        accuracy: `[K]` share of each class that the classifier reads right, the rest evenly as others; None is all.
        n_calibration: Images of each class that it was calibrated on.
        detection: `[K]` share of each class that is read at all; None is all.
        tilt: Share by which class 0 is favoured by the second system; 0 is no difference.
    """

    shares: tuple[float, ...]
    n_prompts: int
    n_images: int
    spread: float
    is_logit: bool = False
    accuracy: tuple[float, ...] | None = None
    n_calibration: int = 400
    detection: tuple[float, ...] | None = None
    tilt: float = 0.0

    @property
    def axis(self) -> Axis:
        """With classes c0, c1, ... and a uniform target."""
        return Axis(name="simulated", classes=tuple(f"c{number}" for number in range(len(self.shares))))

    @property
    def confusion(self) -> FloatArray:
        """`[K, K]` P(read | true)."""
        k = len(self.shares)
        right = np.ones(k) if self.accuracy is None else np.asarray(self.accuracy)
        matrix: FloatArray = np.where(np.eye(k, dtype=bool), right[:, None], (1 - right[:, None]) / (k - 1))
        return matrix

    @property
    def reading(self) -> FloatArray:
        """`[K, K]` P(read | true), or `[K, K + 1]` with not being read as the last where some are not."""
        if self.detection is None:
            return self.confusion
        found = np.asarray(self.detection)[:, None]
        return np.concatenate([found * self.confusion, 1 - found], axis=1)

    @property
    def is_calibrated(self) -> bool:
        """Whether the classifier errs or misses, so that it was calibrated."""
        return self.accuracy is not None or self.detection is not None

    def prompts(self, n: int, generator: np.random.Generator) -> FloatArray:
        """`[n, 2, K]` shares of prompts under two systems."""
        mean = np.asarray(self.shares)
        if self.is_logit:
            weights = mean * np.exp(self.spread * generator.standard_normal((n, len(mean))))
        else:
            weights = generator.gamma((1 / self.spread - 1) * mean, size=(n, len(mean))) + 1e-300
        tilted = weights * np.where(np.arange(len(mean)) == 0, np.exp(self.tilt), 1.0)
        return np.stack([class_shares(weights), class_shares(tilted)], axis=1)


def coverage(
    setting: SimulationSetting, n_populations: int, config: EvaluationConfig, seed: int = 0
) -> "pd.Series[float]":
    """How often intervals hold the truth.

    Args:
        setting: Which populations.
        n_populations: How many.
        config: Confidence, and draws of each interval.
        seed: Of the populations.

    Returns:
        For every metric of `METRICS` that applies, and for `change:METRIC` between both systems, the share of
        populations whose interval holds the truth.
    """
    generator = np.random.default_rng(seed)
    truth = _truth(setting)
    held: dict[str, list[bool]] = {}
    for _ in range(n_populations):
        first, second = (
            {measure.metric: measure for measure in system if measure.metric in truth[0]}
            for system in _population(setting, generator)
        )
        for name, measure in first.items():
            held.setdefault(name, []).append(_holds(measure.bounded_interval(config), truth[0][name]))
            if name in CHANGES:
                change = second[name].bounded_change(measure, config)
                held.setdefault(f"change:{name}", []).append(_holds(change, truth[1][name] - truth[0][name]))
    return pd.Series({name: float(np.mean(hits)) for name, hits in held.items()})


def false_positives(
    setting: SimulationSetting, n_populations: int, level: float = 0.05, seed: int = 0
) -> "pd.Series[float]":
    """How often the permutation test finds a difference between the two systems, which should be equal.

    Returns:
        For every metric of `TESTED`, and of `TESTED_CORRECTED` where the classifier errs or misses, the share of
        populations with a p-value of at most `level`.
    """
    generator = np.random.default_rng(seed)
    names = [*TESTED, *(TESTED_CORRECTED if setting.is_calibrated else ())]
    found = []
    for number in range(n_populations):
        first, second = ({m.metric: m for m in system} for system in _population(setting, generator))
        found.append(permutation_p_values([(second[name], first[name]) for name in names], number, N_PERMUTATIONS))
    return pd.Series((np.array(found) <= level).mean(axis=0), index=names)


def corrected_error(setting: SimulationSetting, n_populations: int, seed: int = 0) -> tuple[float, float]:
    """Mean absolute error of the share of class 0 as read, and as corrected."""
    generator = np.random.default_rng(seed)
    true = _truth(setting)[0]["share_corrected:c0"]
    errors = []
    for _ in range(n_populations):
        found = {measure.metric: measure.value for measure in _population(setting, generator)[0]}
        errors.append([abs(found[name] - true) for name in ("share:c0", "share_corrected:c0")])
    raw, corrected = np.mean(errors, axis=0)
    return float(raw), float(corrected)


def coverage_markdown(rows: Sequence[tuple[SimulationSetting, "pd.Series[float]"]]) -> str:
    """A Markdown table, percent."""
    names = list(dict.fromkeys(name for _, found in rows for name in found.index))
    head = ["K", "prompts", "images", "prompts differ", "classifier", "faces read", "systems", *names]
    lines = [head, ["---"] * len(head), *(_cells(setting, found, names) for setting, found in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(setting: SimulationSetting, found: "pd.Series[float]", names: Sequence[str]) -> list[str]:
    kind = "logit-normal" if setting.is_logit else "Dirichlet"
    right, read = (
        none if parts is None else "/".join(f"{part:.0%}" for part in dict.fromkeys(parts))
        for parts, none in ((setting.accuracy, "exact"), (setting.detection, "all"))
    )
    facts = [str(len(setting.shares)), str(setting.n_prompts), str(setting.n_images), f"{kind} {setting.spread:g}"]
    figures = [f"{100 * found[name]:.1f}" if name in found else "" for name in names]
    return [*facts, right, read, "differ" if setting.tilt else "equal", *figures]


def _population(setting: SimulationSetting, generator: np.random.Generator) -> tuple[list[Measure], list[Measure]]:
    axis, reading = setting.axis, setting.reading
    read = setting.prompts(setting.n_prompts, generator) @ reading
    counts = generator.multinomial(setting.n_images, read).astype(np.float64)
    calibrated: dict[str, Calibrated | str] = {}
    if setting.is_calibrated:
        table = _calibration(axis, generator.multinomial(setting.n_calibration, reading))
        calibrated = calibrated_axes(table, _CLASSIFIER, [axis], confidence=0.95)
    cells = _cells_read(axis, reading.shape[1])
    first, second = (neutral_measures(counts[None, :, number], cells, [axis], calibrated) for number in (0, 1))
    return first, second


def _cells_read(axis: Axis, n_cells: int) -> pd.DataFrame:
    """A cell a class, and one for images that are not read if there is one more."""
    classes = np.arange(n_cells)
    is_read = classes < len(axis.classes)
    return pd.DataFrame({"face": is_read, f"read:{axis.name}": np.where(is_read, classes, UNREAD)})


def _calibration(axis: Axis, counts: "np.typing.NDArray[np.int64]") -> pd.DataFrame:
    """A `calibration` table of independent images, `[K, K]` or `[K, K + 1]` with those that were not read."""
    k = len(axis.classes)
    rows = []
    for true, row in zip(axis.classes, counts, strict=True):
        parts = [(row[:k], axis.classes)] + ([(row[k:], [UNREAD_CLASS])] if len(row) > k else [])
        for part, names in parts:
            total = part.sum() if len(part) == k else row.sum()
            half = 1.96 * np.sqrt((part + 0.5) / (total + 1) * (1 - part / (total + 1)) / total)
            rows += [
                (_CLASSIFIER, axis.name, true, name, int(n), share, share - width, share + width)
                for name, n, share, width in zip(names, part, part / total, half, strict=True)
            ]
    columns = ["classifier", "axis", "true_class", "read_class", "n", "share", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


def _truth(setting: SimulationSetting) -> tuple[dict[str, float], dict[str, float]]:
    """Of both systems, by drawing very many prompts."""
    drawn = setting.prompts(_TRUTH_DRAWS, np.random.default_rng(1))
    first, second = (_truth_of(setting, drawn[:, number]) for number in (0, 1))
    return first, second


def _truth_of(setting: SimulationSetting, prompts: FloatArray) -> dict[str, float]:
    axis, k = setting.axis, len(setting.shares)
    true = prompts.mean(axis=0)
    read = prompts @ setting.reading
    # every prompt weighs the same, however many of its images are read
    shares = class_shares(read[:, :k]).mean(axis=0)
    exact = {m.metric: m.value for m in neutral_measures(shares[None, None] * 1e6, _cells_read(axis, k), [axis], {})}
    counts = np.random.default_rng(2).multinomial(setting.n_images, read)
    each = discrepancies(counts[:, :k])
    groups = each[: len(each) // setting.n_prompts * setting.n_prompts].reshape(-1, setting.n_prompts)
    # of two classes, the others are functions of the discrepancy
    wanted = METRICS if k > 2 else [name for name in METRICS if name not in ("entropy", "parity_gap", "bias")]
    known = {name: value for name, value in exact.items() if name in wanted}
    known |= {"discrepancy_per_prompt": float(each.mean()), "discrepancy_worst10": float(worst_mean(groups).mean())}
    if setting.is_calibrated:
        known |= {"share_corrected:c0": float(true[0]), "discrepancy_corrected": float(discrepancies(true))}
    return known


def _holds(ends: tuple[float, float], truth: float) -> bool:
    return bool(ends[0] - 1e-9 <= truth <= ends[1] + 1e-9)


def _settings() -> Iterator[SimulationSetting]:
    even2, even3, even6 = (0.5, 0.5), (1 / 3,) * 3, (1 / 6,) * 6
    white = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
    yield SimulationSetting(even2, 14, 60, 0.3)
    yield SimulationSetting((0.75, 0.25), 40, 20, 0.3)
    yield SimulationSetting((0.8, 0.2), 14, 60, 1.0, is_logit=True, tilt=-1.0)
    yield SimulationSetting(even2, 100, 100, 1.5, is_logit=True)
    yield SimulationSetting(even3, 14, 60, 0.2)
    yield SimulationSetting((0.6, 0.3, 0.1), 40, 40, 0.2, tilt=-0.8)
    yield SimulationSetting(even6, 20, 40, 0.1)
    yield SimulationSetting(white, 40, 40, 0.8, is_logit=True)
    yield SimulationSetting(white, 100, 100, 0.15, tilt=-1.0)
    yield SimulationSetting((0.7, 0.3), 20, 60, 0.2, accuracy=(0.9, 0.75))
    yield SimulationSetting(even2, 40, 40, 0.2, accuracy=(0.9, 0.75))
    yield SimulationSetting((0.6, 0.3, 0.1), 40, 40, 0.2, accuracy=(0.85, 0.85, 0.85), tilt=-0.8)
    yield SimulationSetting(even2, 40, 40, 0.2, detection=(0.95, 0.6))
    yield SimulationSetting((0.7, 0.3), 40, 40, 0.2, accuracy=(0.9, 0.85), detection=(0.9, 0.8), tilt=-0.8)
    yield SimulationSetting((0.6, 0.4), 40, 40, 0.2, detection=(0.7, 0.7))
    yield SimulationSetting((0.5, 0.3, 0.2), 40, 40, 0.2, accuracy=(0.9, 0.9, 0.9), detection=(0.95, 0.8, 0.6))


SETTINGS = tuple(_settings())
"""K of 2, 3 and 6; 14 to 100 prompts; 20 to 100 images; weak and strong prompt effects; with and without errors."""
