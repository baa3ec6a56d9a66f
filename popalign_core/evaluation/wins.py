"""Judging by machine: how often a scorer prefers a system's image to another system's for the same prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from popalign_core.config import EvaluationConfig
from popalign_core.config.evaluation import DIVERSITY
from popalign_core.errors import InputError
from popalign_core.evaluation.frames import SystemFrames
from popalign_core.evaluation.measures import NO_ENDS, Share, ratio
from popalign_core.evaluation.paired import N_PER_HEADLINE, N_PERMUTATIONS, holm, permutation_p_values
from popalign_core.prompts.benchmarks import benchmarks_of, clusters_of

COLUMNS = (
    *("system", "reference", "benchmark", "scorer", "version", "n", "n_wins", "n_ties", "win_rate"),
    *("ci_low", "ci_high", "p_value", "p_adjusted"),
)
_KEY = ["replicate", "prompt_id", "index"]


def win_rates(
    prompts: pd.DataFrame, reference: SystemFrames, systems: Sequence[SystemFrames], config: EvaluationConfig
) -> pd.DataFrame:
    """Win rates of systems over the reference, for every scorer that scored both in the same version.

    Diversity is left out: it is of all images of a prompt, and none of them can be preferred for it.

    Images are paired by replicate, prompt and index, so of one seed where both were sampled with the same. A tie counts
    half. What is estimated: the chance that of two images of a prompt like these the system's has the higher score.

    Args:
        prompts: Prompts table of all.
        reference: The system compared with.
        systems: The systems compared.
        config: Confidence; seed of the permutations.

    Returns:
        Table `wins`, a row a system, benchmark and scorer; interval clustered on prompts, the p-value of exchanging the
        two systems prompt by prompt, and Holm's over all rows; all NaN for a single prompt.

    Raises:
        InputError: When a score is not finite.
    """
    facts = pd.DataFrame({"benchmark": benchmarks_of(prompts), "cluster": clusters_of(prompts)}).set_index(
        prompts["prompt_id"]
    )
    known = _scored(reference)
    groups = []
    for system in systems:
        pairs = _scored(system).merge(known, on=[*_KEY, "scorer", "version"], suffixes=("", "_reference"))
        named = pairs.join(facts, on="prompt_id").groupby(["benchmark", "scorer", "version"], sort=True)
        groups += [((system.name, reference.name, *map(str, names)), group) for names, group in named]
    n_permutations = max(N_PERMUTATIONS, N_PER_HEADLINE * len(groups) - 1)
    rows = [_row(names, group, n_permutations, config) for names, group in groups]
    counts = {"n": np.int64, "n_wins": np.int64, "n_ties": np.int64}
    table = pd.DataFrame(rows, columns=list(COLUMNS[:-1])).astype(counts)
    return table.assign(p_adjusted=holm(table["p_value"].to_numpy(dtype=np.float64)))


def _scored(frames: SystemFrames) -> pd.DataFrame:
    bad = frames.scores[~np.isfinite(frames.scores["value"].to_numpy(dtype=np.float64))]
    if len(bad):
        scorer = bad["scorer"].iloc[0]
        raise InputError(
            f"{frames.name!r} has {len(bad)} scores that are not finite (first: of {scorer!r}); score again"
        )
    images = frames.images if "replicate" in frames.images else frames.images.assign(replicate=0)
    scores = frames.scores[frames.scores["scorer"] != DIVERSITY]
    return scores.merge(images[["image_id", *_KEY]], on="image_id")[[*_KEY, "scorer", "version", "value"]]


def _row(names: tuple[str, ...], pairs: pd.DataFrame, n_permutations: int, config: EvaluationConfig) -> dict[str, Any]:
    """`names` are the first columns: system, reference, benchmark, scorer, version."""
    is_win = (pairs["value"] > pairs["value_reference"]).to_numpy()
    is_tie = (pairs["value"] == pairs["value_reference"]).to_numpy()
    cluster = np.unique(pairs["cluster"].to_numpy(dtype=str), return_inverse=True)[1]
    won, tied, n = (np.bincount(cluster, weights=part) for part in (is_win, is_tie, np.ones(len(pairs))))
    points = won + tied / 2
    mine, other = (
        Share("wins", "", np.stack([part, n], axis=-1)[None], ratio, len(pairs)) for part in (points, n - points)
    )
    several = len(n) > 1
    low, high = mine.interval(config) if several else NO_ENDS
    p_value = permutation_p_values([(mine, other)], config.seed, n_permutations)[0] if several else np.nan
    values = (len(pairs), int(is_win.sum()), int(is_tie.sum()), mine.value, low, high, p_value)
    return dict(zip(COLUMNS[:-1], (*names, *values), strict=True))
