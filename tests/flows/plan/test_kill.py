"""`kill -9` at many moments, then the same command: the same tables, byte for byte."""

import os
from pathlib import Path

import numpy as np
import pytest
from forking import run_and_die

from flows.plan.execution import OnProgress, call_directly
from flows.plan.runs import run_pipeline
from popalign_core.config import PipelineConfig, RuntimeConfig

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def tables(root: str) -> dict[str, bytes]:
    visible = (path for path in Path(root).rglob("*") if path.suffix in (".parquet", ".safetensors", ".json", ".html"))
    found = {str(path.relative_to(root)): path.read_bytes() for path in visible}
    return {name: data for name, data in found.items() if not name.startswith(".")}


def test_a_run_killed_at_many_moments_ends_with_the_same_bytes(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tiny_run: Path
) -> None:
    # one thread: OpenMP's pool does not live on in a fork, and the child would wait for it for ever
    tiny_runtime = tiny_runtime.model_copy(update={"n_threads": 1})
    rng = np.random.default_rng(0)  # stages tell of their batches too, so that shards are cut short
    n_kills = 0

    def run(on_progress: OnProgress) -> None:
        run_pipeline(tiny_config, tiny_runtime, "run", call=call_directly(on_progress))

    while not run_and_die(run, int(rng.integers(2, 12))):
        n_kills += 1
        assert n_kills < 100, "no progress between kills"
    assert n_kills >= 8
    expected, found = tables(str(tiny_run)), tables(tiny_runtime.root)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
