"""Metrics rows from kept features, for the stages that put metrics tables together."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config import EvaluationConfig
from storage.store import ArtifactRef, Store
from tasks.common.image_tables import read_images
from tasks.stages.feature_files import read_features
from tasks.stages.scores import read_unmeasured

if TYPE_CHECKING:
    from popalign_core.evaluation.quality.set_distances import FeaturedSystem

Replicate = tuple[ArtifactRef, ArtifactRef]
"""The images of a system under one seed, and their scores."""


def quality_rows(
    store: Store, prompts: pd.DataFrame, systems: Mapping[str, Sequence[Replicate]], config: EvaluationConfig
) -> pd.DataFrame:
    """What `compute_metrics` does not give: the distances of each system's images from those of the first, and a row
    for every score whose weights were not there.

    Args:
        store: Where the artifacts are.
        prompts: Prompts table of all.
        systems: Name -> its replicates; the reference first. Of one alone there are no distances.
        config: Confidence.

    Returns:
        A metrics table; see `compare_sets` and `unmeasured_rows`.
    """
    from popalign_core.evaluation.quality.set_distances import compare_sets, unmeasured_rows

    parts, reference = [], None
    for name, replicates in systems.items():
        system = _read_system(store, name, replicates)
        reasons = {metric: why for _, scores in replicates for metric, why in read_unmeasured(store, scores).items()}
        parts.append(unmeasured_rows(name, prompts, system.images, reasons))
        if reference is None:
            reference = system
        else:
            parts.append(compare_sets(prompts, reference, system, config, reasons))
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def _read_system(store: Store, name: str, replicates: Sequence[Replicate]) -> "FeaturedSystem":
    import torch

    from popalign_core.evaluation.quality.features import Features
    from popalign_core.evaluation.quality.set_distances import FeaturedSystem

    images, found = [], []
    for number, (sample, scores) in enumerate(replicates):
        images.append(read_images(store, sample)[["image_id", "prompt_id"]].assign(replicate=number))
        found.append(read_features(store, scores))
    features = {}
    for sort in set[str]().union(*found):
        parts = [one[sort] for one in found if sort in one]  # a replicate of which every image was withheld has none
        ids = [image_id for part in parts for image_id in part.image_ids]
        features[sort] = Features(parts[0].version, ids, torch.cat([part.values for part in parts]))
    return FeaturedSystem(name, pd.concat(images, ignore_index=True), features)
