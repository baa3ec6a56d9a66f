"""Benchmarks: evaluation prompts that are measured apart from each other."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from popalign_core.config import BenchmarkConfig
from popalign_core.prompts.grammar import benchmark_row, prompt_table, verbatim_row


def benchmarks_of(prompts: pd.DataFrame) -> "pd.Series[str]":
    """The benchmark of each prompt of a `prompts` table; where it names none, the kind."""
    if "benchmark" not in prompts:
        return prompts["kind"]
    return prompts["benchmark"].where(prompts["benchmark"].notna(), prompts["kind"])


def clusters_of(prompts: pd.DataFrame) -> "pd.Series[str]":
    """The prompt, or the neutral prompt it was made from: its variants are not independent of each other."""
    return prompts["parent_id"].where(prompts["parent_id"].notna(), prompts["prompt_id"])


def evenly(texts: Sequence[str], n_prompts: int | None) -> list[str]:
    """So many of a list's prompts, at equal distances: lists are often sorted by theme. None takes all."""
    if n_prompts is None or n_prompts >= len(texts):
        return list(texts)
    return [texts[i * len(texts) // n_prompts] for i in range(n_prompts)]


def benchmark_prompts(
    name: str,
    benchmark: BenchmarkConfig,
    texts: Sequence[str],
    usual_carrier: str,
    carriers: Mapping[str, str] = MappingProxyType({}),
) -> pd.DataFrame:
    """A benchmark's rows of `prompts`; of kind specific the subjects that identities are yet to be added to.

    Args:
        name: Of the benchmark.
        benchmark: Its kind and its carrier.
        texts: Usable ones.
        usual_carrier: Where the benchmark has none.
        carriers: Subject -> the carrier it was listed with.
    """
    if benchmark.kind == "generic" and benchmark.carrier is None:
        return prompt_table(verbatim_row(text, "eval", name) for text in texts)
    carrier = benchmark.carrier or usual_carrier
    return prompt_table(benchmark_row(text, benchmark.kind, carriers.get(text, carrier), name) for text in texts)
