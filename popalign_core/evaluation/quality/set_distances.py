"""Rows that compare the images of a system with those of a reference as sets: CMMD, KID and FID."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from popalign_core.config import EvaluationConfig
from popalign_core.config.evaluation import CMMD, FID, KID, SUBJECT_ACCURACY
from popalign_core.errors import InputError
from popalign_core.evaluation.measures import ONE_PROMPT
from popalign_core.evaluation.metrics import COLUMNS
from popalign_core.evaluation.quality.feature_distances import (
    FloatArray,
    cubic_kernel,
    expected_if_equal,
    frechet_distance,
    gaussian_kernel,
    jackknife_reach,
    kernel_sums,
    squared_mmd,
)
from popalign_core.evaluation.quality.features import CLIP, INCEPTION, Features
from popalign_core.prompts.benchmarks import benchmarks_of

SET_METRICS = {CMMD: CLIP, KID: INCEPTION, FID: INCEPTION}
"""Metric -> the features it is taken on. Units: 1000 x squared distance, squared distance, FID's own."""
AT_FLOOR = "no interval: too near the floor for one that holds"
_MIN_IMAGES = 2


@dataclass(frozen=True)
class FeaturedSystem:
    """The evaluation images of one system, as features.

    Attributes:
        name: The system's.
        images: image_id, prompt_id, and `replicate` where there are several.
        features: As `tasks.stages.feature_files.read_features` gives them.
    """

    name: str
    images: pd.DataFrame
    features: Mapping[str, Features]


@dataclass(frozen=True)
class _Estimate:
    value: float
    floor: float
    without_one: FloatArray
    n: int


def compare_sets(
    prompts: pd.DataFrame,
    reference: FeaturedSystem,
    system: FeaturedSystem,
    config: EvaluationConfig,
    unmeasured: Mapping[str, str],
) -> pd.DataFrame:
    """Distances between the images of two systems on every benchmark.

    Lower is nearer to the reference, not better: an aligned system is meant to differ in who is shown.

    Args:
        prompts: Prompts table of both.
        reference: The system compared with, usually the base model.
        system: The system.
        config: Confidence.
        unmeasured: Metric -> reason, for those whose weights are not there.

    Returns:
        A metrics table; `scorer` is metric@version. The intervals of CMMD and KID are from leaving out one prompt at a
        time (jackknife). That knows nothing of distances near 0, whose distribution is no normal one: where it reaches
        the floor, there is no interval but a note. FID, whose bias depends on the number of images, has none at all.
        `floor`, of CMMD and KID, is what two independent samples of one distribution give; with common seeds a system
        may come nearer. `n` counts the system's images.

    Raises:
        InputError: When the features of the two are of different networks, or are not those of the images.
    """
    kinds = benchmarks_of(prompts.set_index("prompt_id"))
    rows = []
    for metric, sort in SET_METRICS.items():
        scorer = _common_version(metric, sort, reference, system)
        without = [one.name for one in (reference, system) if sort not in one.features]
        why = unmeasured.get(metric, f"not measured: no features of {' and '.join(without)}")
        if len(without) == 2 and metric not in unmeasured:
            continue  # nobody asked for it
        for benchmark in dict.fromkeys(kinds):
            chosen = set(kinds.index[kinds == benchmark])
            if not system.images["prompt_id"].isin(chosen).any():
                continue
            if scorer is None:
                rows.append(_row(system, benchmark, metric, metric, why))
                continue
            estimates = list(_estimates(metric, sort, reference, system, chosen))
            rows.append(_measured(system, benchmark, metric, scorer, estimates, config))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": np.int64})


def unmeasured_rows(
    system: str, prompts: pd.DataFrame, images: pd.DataFrame, unmeasured: Mapping[str, str]
) -> pd.DataFrame:
    """A metrics row for every score of single images that could not be taken, with the reason.

    Args:
        system: Name of the system.
        prompts: Prompts table.
        images: Of the system, with image_id and prompt_id.
        unmeasured: Metric -> reason; distances of sets are `compare_sets`'s.
    """
    sampled = prompts[prompts["prompt_id"].isin(images["prompt_id"])]
    benchmarks, named = benchmarks_of(sampled), FeaturedSystem(system, images, {})
    rows = []
    for metric, reason in unmeasured.items():
        chosen = benchmarks[benchmarks == "generic"] if metric == SUBJECT_ACCURACY else benchmarks
        if metric not in SET_METRICS:
            rows += [_row(named, benchmark, metric, metric, reason) for benchmark in dict.fromkeys(chosen)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": np.int64})


def _common_version(metric: str, sort: str, reference: FeaturedSystem, system: FeaturedSystem) -> str | None:
    """Who gave the features; None where one of the two has none."""
    found = [one.features[sort].version for one in (reference, system) if sort in one.features]
    if len(found) < 2:
        return None
    if found[0] != found[1]:
        raise InputError(
            f"{metric} of {system.name!r} against {reference.name!r}: their features are of different networks, "
            f"{found[1]} and {found[0]}; score both with the same scorers"
        )
    return f"{metric}@{found[0]}"


def _estimates(
    metric: str, sort: str, reference: FeaturedSystem, system: FeaturedSystem, prompt_ids: set[str]
) -> Iterator[_Estimate]:
    """One a replicate, on the prompts that both have images of."""
    sides = [_comparable_features(one, sort, prompt_ids) for one in (system, reference)]
    for replicate in sorted(set(sides[0]["replicate"]) & set(sides[1]["replicate"])):
        chosen = [side[side["replicate"] == replicate] for side in sides]
        both = sorted(set(chosen[0]["prompt_id"]) & set(chosen[1]["prompt_id"]))
        if min(len(side) for side in chosen) < _MIN_IMAGES or not both:
            continue
        number = {prompt_id: place for place, prompt_id in enumerate(both)}
        inside = [side[side["prompt_id"].isin(number)] for side in chosen]
        x, y = (
            one.features[sort].values[side["row"].tolist()]
            for one, side in zip((system, reference), inside, strict=True)
        )
        if metric == FID:
            yield _Estimate(frechet_distance(x, y), np.nan, np.array([]), len(x))
            continue
        x_prompt, y_prompt = (side["prompt_id"].map(number).to_numpy(dtype=np.intp) for side in inside)
        sums = kernel_sums(x, x_prompt, y, y_prompt, gaussian_kernel if metric == CMMD else cubic_kernel)
        value, without_one = squared_mmd(sums, unbiased=metric == KID)
        # KID leaves out the pairs that push CMMD up
        yield _Estimate(value, expected_if_equal(sums) if metric == CMMD else 0.0, without_one, len(x))


def _comparable_features(one: FeaturedSystem, sort: str, prompt_ids: set[str]) -> pd.DataFrame:
    """Row in the features, prompt and replicate of each image of some prompts that has features."""
    features = one.features[sort]
    images = one.images if "replicate" in one.images else one.images.assign(replicate=0)
    rows = pd.DataFrame({"image_id": list(features.image_ids), "row": np.arange(len(features.image_ids))})
    found = images[["image_id", "prompt_id", "replicate"]].merge(rows, on="image_id")
    if len(found) != len(rows):
        raise InputError(
            f"{one.name!r}: {len(rows) - len(found)} of {len(rows)} features are of images that are not among its "
            f"{len(images)} images; give the scores of the same images"
        )
    return found[found["prompt_id"].isin(prompt_ids)]


def _measured(
    system: FeaturedSystem,
    benchmark: str,
    metric: str,
    scorer: str,
    estimates: list[_Estimate],
    config: EvaluationConfig,
) -> dict[str, Any]:
    if not estimates:
        return _row(system, benchmark, metric, scorer, "not measured: fewer than two pictures of a common prompt")
    value, floor = (float(np.mean([getattr(one, name) for one in estimates])) for name in ("value", "floor"))
    low, high, note = np.nan, np.nan, ""
    if metric != FID:
        low, high, note = _interval(value, floor, estimates, config)
    notes = [note] if note else []
    if len(estimates) > 1:
        notes.append("seeds: " + " ".join(f"{one.value:.3g}" for one in estimates))
    found = {"value": value, "ci_low": low, "ci_high": high, "n": sum(one.n for one in estimates), "floor": floor}
    return _row(system, benchmark, metric, scorer, "; ".join(notes)) | found


def _interval(
    value: float, floor: float, estimates: list[_Estimate], config: EvaluationConfig
) -> tuple[float, float, str]:
    """(low, high, why there is none)."""
    if len({len(one.without_one) for one in estimates}) > 1:
        return np.nan, np.nan, "no interval: the replicates have other prompts"
    reach = jackknife_reach(np.mean([one.without_one for one in estimates], axis=0), config.confidence)
    if np.isnan(reach):
        is_one = len(estimates[0].without_one) == 1
        return np.nan, np.nan, ONE_PROMPT if is_one else "no interval: too few pictures"
    if value - reach <= floor:
        return np.nan, np.nan, AT_FLOOR
    return value - reach, value + reach, ""


def _row(system: FeaturedSystem, benchmark: str, metric: str, scorer: str, note: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("value", "ci_low", "ci_high", "floor"), np.nan)
    names = {"system": system.name, "benchmark": benchmark, "metric": metric, "axis": "", "scorer": scorer}
    return names | nothing | {"n": 0, "note": note}
