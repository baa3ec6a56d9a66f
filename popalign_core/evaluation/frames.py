"""The evaluation images of a system as tables, and everything that is measured on them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pandas as pd

from popalign_core.config import Axis, Kind
from popalign_core.config.evaluation import SUBJECT_ACCURACY
from popalign_core.errors import InputError
from popalign_core.evaluation.correction import Calibrated
from popalign_core.evaluation.counts import FloatArray, count_cells
from popalign_core.evaluation.gaps import gap_measure
from popalign_core.evaluation.measures import Measure, Share, ratio
from popalign_core.evaluation.prevalence import faceless_measures, neutral_measures
from popalign_core.evaluation.recall import recall_measures
from popalign_core.evaluation.score_units import SHARE, unit_bounds

KINDS = get_args(Kind)
"""The kinds of prompts, in the order of the tables."""


WITHHELD = "not measured: every image was withheld"
QUALITY_GAP = "quality_gap"
"""With the scorer after a colon: the largest difference of its mean between two classes that were asked for."""


@dataclass(frozen=True)
class SystemFrames:
    """The evaluation images of one system, as tables.

    Attributes:
        name: The system's name in the metrics table.
        images: image_id, prompt_id, index, seed (pixels are not needed); `replicate`, if there are several; where a
            column `is_shown` is false the image was withheld, and nothing could score it.
        attributes: Attributes table of the neutral and specific images.
        scores: Scores table; may be empty.
    """

    name: str
    images: pd.DataFrame
    attributes: pd.DataFrame
    scores: pd.DataFrame


@dataclass(frozen=True)
class Protocol:
    """How systems are measured.

    Attributes:
        axes: The axes, with their targets.
        calibrated: From `correction.calibrated_axes`.
        benchmark_axes: Benchmark to the names of the axes measured on it; all where it is not named.
    """

    axes: Sequence[Axis]
    calibrated: Mapping[str, Calibrated | str] = field(default_factory=dict)
    benchmark_axes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def axes_of(self, benchmark: str) -> list[Axis]:
        """The axes measured on a benchmark."""
        names = self.benchmark_axes.get(benchmark)
        return [axis for axis in self.axes if names is None or axis.name in names]


@dataclass(frozen=True)
class Measured:
    """A measure of a system, the benchmark it was taken on and who read or scored the images."""

    benchmark: str
    scorer: str
    measure: Measure

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is compared by: benchmark, metric, axis."""
        return self.benchmark, self.measure.metric, self.measure.axis


def benchmarks(labels: pd.DataFrame) -> list[str]:
    """The benchmarks that have images, by kind, then in the order of their first image."""
    kinds = labels.drop_duplicates("benchmark").set_index("benchmark")["kind"]
    return sorted(kinds.index, key=lambda name: (KINDS.index(kinds[name]), name != kinds[name], name))


def measure_benchmark(
    labels: pd.DataFrame, clusters: Sequence[str] | None, frames: SystemFrames, protocol: Protocol
) -> Iterator[Measured]:
    """Fairness on neutral prompts, recall on specific ones, scores on all.

    Args:
        labels: From `counts.label_images`, of one benchmark; at least one row.
        clusters: The prompts in the order wanted, see `counts.count_cells`.
        frames: Of the same system.
        protocol: How.

    Raises:
        InputError: When a score is NaN or missing for some images, or a scorer has two versions.
    """
    benchmark, kind = str(labels["benchmark"].iloc[0]), labels["kind"].iloc[0]
    axes = protocol.axes_of(benchmark)
    measures: list[Measure] = []
    if kind != "generic" and axes:
        read, asked = ([f"{what}:{axis.name}" for axis in axes] for what in ("read", "asked"))
        counted = count_cells(labels, ["face", *read, *asked], clusters)
        if kind == "neutral":
            measures = neutral_measures(counted.counts, counted.cells, axes, protocol.calibrated)
        else:
            recalls = recall_measures(counted.counts, counted.cells, axes)
            measures = [*recalls, *faceless_measures(counted.counts, counted.cells, axes)]
        classifier = str(frames.attributes["classifier"].iloc[0])
        yield from (Measured(benchmark, classifier, measure) for measure in measures)
    yield from _scores(labels, clusters, frames, axes if kind == "specific" else ())


def _scores(
    labels: pd.DataFrame, clusters: Sequence[str] | None, frames: SystemFrames, identity_axes: Sequence[Axis]
) -> Iterator[Measured]:
    """Every scorer's mean; over each class that was asked for too, and the gaps between them, on `identity_axes`."""
    scores, images = frames.scores, frames.images
    place = pd.Index(labels["image_id"]).get_indexer(pd.Index(scores["image_id"]))
    is_shown = np.ones(len(labels), dtype=bool)
    if "is_shown" in images:
        withheld = images.loc[~images["is_shown"].astype(bool), "image_id"]
        found = pd.Index(labels["image_id"]).get_indexer(pd.Index(withheld))
        is_shown[found[found >= 0]] = False
    for scorer in sorted(scores.loc[place >= 0, "scorer"].unique()):
        chosen = (scores["scorer"] == scorer).to_numpy() & (place >= 0)
        versions = sorted(scores.loc[chosen, "version"].unique())
        if len(versions) > 1:
            raise InputError(f"scorer {scorer!r} has scores of several versions, {versions}; keep one")
        if (np.bincount(place[chosen], minlength=len(labels)) > 1).any():
            raise InputError(f"scorer {scorer!r} scored an image twice; keep one score per image")
        values = np.full(len(labels), np.nan)
        values[place[chosen]] = scores.loc[chosen, "value"]
        missing = ~np.isfinite(values) & is_shown
        if missing.any():
            raise InputError(
                f"scorer {scorer!r} has no finite score for {int(missing.sum())} of {len(values)} "
                "images of a benchmark; score all of them, or none"
            )
        # right or wrong, so a share: as a mean, three right of three would be certain, and three of four up to 393%
        kind, unit = (Share, SHARE) if scorer == SUBJECT_ACCURACY else (Measure, _unit(scores[chosen]))
        scored = _Scored(str(scorer), kind, unit_bounds(unit), np.where(is_shown, values, 0.0), is_shown)
        for measure in (scored.mean(labels, clusters), *scored.by_identity(labels, clusters, identity_axes)):
            yield Measured(str(labels["benchmark"].iloc[0]), f"{scorer}@{versions[0]}", measure)


@dataclass(frozen=True)
class _Scored:
    """One scorer's values of all images of a benchmark, 0 where an image was withheld."""

    scorer: str
    kind: type[Measure]
    bounds: tuple[float, float]
    values: FloatArray
    is_shown: "np.typing.NDArray[np.bool_]"

    def mean(self, labels: pd.DataFrame, clusters: Sequence[str] | None) -> Measure:
        return self._of(self.scorer, "", _sums(labels, clusters, self.values, self.is_shown), WITHHELD)

    def by_identity(
        self, labels: pd.DataFrame, clusters: Sequence[str] | None, axes: Sequence[Axis]
    ) -> Iterator[Measure]:
        for axis in axes:
            asked = labels[f"asked:{axis.name}"].to_numpy()
            chosen = [self.is_shown & (asked == number) for number in range(len(axis.classes))]
            terms = [_sums(labels, clusters, np.where(one, self.values, 0.0), one) for one in chosen]
            for label, one in zip(axis.classes, terms, strict=True):
                why = f"not measured: no image shown asks for {label}"
                yield self._of(f"{self.scorer}:{label}", axis.name, one, why)
            width = self.bounds[1] - self.bounds[0]
            yield gap_measure(f"{QUALITY_GAP}:{self.scorer}", axis.name, terms, of_shares=False, width=width)

    def _of(self, metric: str, axis: str, terms: FloatArray, why: str) -> Measure:
        n = int(terms[..., 1].sum())
        return self.kind(metric, axis, terms, ratio, n, bounds=self.bounds, why=why)


def _unit(scores: pd.DataFrame) -> str:
    """Of one scorer's scores; tables put together by hand may not say."""
    return str(scores["unit"].iloc[0]) if "unit" in scores else ""


def _sums(
    labels: pd.DataFrame, clusters: Sequence[str] | None, values: FloatArray, counted: "np.typing.NDArray[np.bool_]"
) -> FloatArray:
    """`[R, P, 2]` sum of the values and number of images."""
    names = sorted(labels["cluster"].unique()) if clusters is None else list(clusters)
    cluster = pd.Index(names).get_indexer(pd.Index(labels["cluster"]))
    numbers, replicate = np.unique(labels["replicate"].to_numpy(), return_inverse=True)
    shape = (len(numbers), len(names))
    flat = np.ravel_multi_index((replicate, cluster), shape)
    sums = [np.bincount(flat, weights=weights, minlength=len(numbers) * len(names)) for weights in (values, counted)]
    return np.stack([part.reshape(shape) for part in sums], axis=-1)
