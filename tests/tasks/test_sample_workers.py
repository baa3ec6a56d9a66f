"""A sample drawn by workers: the bytes of one process, whoever draws and whoever dies."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.testing.utilities import prefect_test_harness

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef
from tasks.identities import add_identities
from tasks.prompts import write_prompts
from tasks.sample import sample_images
from tasks.stage import open_store

CLUSTERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("ray", "dask")]
WORKER_NAMES = {"processes": "multiprocessing.spawn", "ray": "ray::", "dask": "multiprocessing.spawn"}
"""What the command line of a worker that draws has in it."""


@pytest.fixture(scope="module", autouse=True)
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, prefect_test_harness(server_startup_timeout=120):
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray writes a token there
        yield


@pytest.fixture
def runtime(tiny_runtime: RuntimeConfig) -> RuntimeConfig:
    return tiny_runtime.model_copy(update={"shard_size": 4, "n_threads": 1})


def draw(config: PipelineConfig, runtime: RuntimeConfig, on_progress: Any = lambda done, total: None) -> ArtifactRef:
    prompts = add_identities(write_prompts(config=config, runtime=runtime), config=config, runtime=runtime)
    return sample_images(prompts, purpose="preferences", config=config, runtime=runtime, on_progress=on_progress)


def files(runtime: RuntimeConfig, ref: ArtifactRef) -> dict[str, bytes]:
    folder = Path(open_store(runtime).localize(ref))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".parquet", ".safetensors")}


def drawing_workers(runner: str) -> list[psutil.Process]:
    """Processes below this one that have the model loaded."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            is_worker = WORKER_NAMES[runner] in " ".join(process.cmdline())
            if is_worker and process.memory_info().rss > 300 * 2**20:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_threads_draw_what_one_does(tiny_config: PipelineConfig, runtime: RuntimeConfig, tmp_path: Path) -> None:
    alone = runtime.model_copy(update={"root": str(tmp_path / "alone")})
    threads = runtime.model_copy(update={"runner": "threads", "n_workers": 2})
    ref = draw(tiny_config, threads)
    assert draw(tiny_config, alone) == ref
    assert files(threads, ref) == files(alone, ref)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("runner", ["processes", *CLUSTERS])
def test_a_worker_killed_in_the_middle_of_a_shard_costs_nothing(
    tiny_config: PipelineConfig, runtime: RuntimeConfig, tmp_path: Path, runner: str
) -> None:
    alone = runtime.model_copy(update={"root": str(tmp_path / "alone")})
    many = runtime.model_copy(update={"runner": runner, "n_workers": 2})
    killed: list[int] = []
    seen: list[int] = []

    def kill_one(done: int, total: int) -> None:
        seen.append(done)
        if done and not killed:
            worker = drawing_workers(runner)[0]
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    ref = draw(tiny_config, many, kill_one)
    assert len(killed) == 1
    assert draw(tiny_config, alone) == ref
    assert files(many, ref) == files(alone, ref)
    # each of the ten shards of 4 was handed in once
    assert sorted(seen) == [0, *range(4, 44, 4)]
