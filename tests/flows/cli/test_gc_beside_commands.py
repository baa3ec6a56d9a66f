"""`popalign gc` without a pause in a process of its own, while every command that makes or uses artifacts runs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_files import write_subfolders
from pair_files import ten_pairs, write_pairs
from set_files import two_sets, write_sets
from typer.testing import CliRunner, Result

from flows.cli.app import app
from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.keys import ArtifactRef
from storage.store import Store

REPOSITORY = Path(__file__).resolve().parents[3]
N_COLLECTIONS = 100

_COLLECT = """
import os, sys, time
from pathlib import Path
from typer.testing import CliRunner
from flows.cli.app import app
root, log, parent = sys.argv[1], Path(sys.argv[2]), os.getppid()
while os.getppid() == parent:
    result = CliRunner().invoke(app, ["gc", "--root", root])
    with log.open("a") as file:
        file.write(f"{result.exit_code} {result.output!r}\\n")
    time.sleep(0.02)
"""


class Collector:
    """What the process beside has done so far."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def wait_for(self, n: int) -> None:
        deadline = time.monotonic() + 120
        while len(self.lines()) < n:
            assert time.monotonic() < deadline, "the collector does not collect"
            time.sleep(0.05)


@pytest.fixture
def collector(tiny_runtime: RuntimeConfig, tmp_path: Path) -> Iterator[Collector]:
    Store(tiny_runtime.root)
    log = tmp_path / "collections.txt"
    process = subprocess.Popen(
        [sys.executable, "-c", _COLLECT, tiny_runtime.root, str(log)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    try:
        collector = Collector(log)
        collector.wait_for(1)
        yield collector
        assert process.poll() is None, "the collector died"
    finally:
        process.kill()
        process.wait()


def litter(store: Store, number: int) -> None:
    """An artifact that nothing refers to, so that there always is something to delete."""
    payload = {"stage": "scores", "version": "1", "config": {"litter": number}, "inputs": {}}
    ref = ArtifactRef("scores", store.key("scores", "1", {"litter": number}, {}))
    with store.build(ref, payload) as build:
        build.write_file("litter.txt", b"litter")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_that_a_command_makes_or_uses_is_collected_beside_it(
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tiny_weights: Path,
    tmp_path: Path,
    collector: Collector,
) -> None:
    root, n_commands = tiny_runtime.root, 0
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(tiny_config.model_dump(mode="json")))
    how = ["--root", root, "--config", str(file), "--set", "runtime.device=cpu", "--set", "runtime.shard_size=8"]

    def popalign(*words: str) -> Result:
        nonlocal n_commands
        n_commands += 1
        litter(Store(root), n_commands)
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == 0, (words, result.output, result.exception)
        collector.wait_for(len(collector.lines()) + 1)
        return result

    pixels = ten_pairs()[0]["jpg_0"]
    pictures = write_subfolders(
        tmp_path / "pictures", [(f"a photo of a {name}", pixels) for name in ("judge", "dancer")]
    )
    dpo = ["--set", "training.objective=diffusion-dpo", "--set", "training.retention=0"]

    popalign("stage", "benchmarks", *how)
    popalign("stage", "evaluate:base", *how)
    popalign("run", *how, "--name", "one")
    popalign("stage", "report", *how, "--force")
    popalign("report", *how, "--name", "eight")
    popalign("evaluate", str(tiny_weights / "pipeline"), *how)
    popalign("check", "one", *how, "--lenient", "--max-discrepancy", "1")
    popalign("compare", "base", "sft", "cads", *how, "--name", "two", "--scale", "0.5")
    popalign("sweep", "sampling.n_steps=1,2", *how, "--name", "three", "--scale", "0.5")
    popalign("sweep", "training.beta=10,20", *how, "--name", "four", "--scale", "0.5")
    images = popalign("import", "images", str(pictures), *how).stdout.strip()
    popalign("compare", "base", "mine", *how, "--name", "five", "--set", f'systems.mine={{images="{images}"}}')
    pairs = popalign("import", "pairs", str(write_pairs(tmp_path / "pairs.parquet", ten_pairs())), *how).stdout.strip()
    popalign("train", pairs, *how, *dpo, "--name", "six")
    sets = popalign("import", "sets", str(write_sets(tmp_path / "sets.parquet", two_sets())), *how).stdout.strip()
    popalign("train", sets, *how, *dpo, "--name", "seven")
    popalign("study", "create", "who", "aligned", "base", "--run", "one", "--root", root, "--set", "set_size=2")
    popalign("study", "curate", "fair", "--run", "one", "--root", root, "--set", "set_size=2")
    popalign("study", "label", "seen", "--run", "one", "--root", root)
    record = json.loads((Path(root) / "runs" / "one" / "run.json").read_text())
    key = record["meta"]["nodes"]["preferences"].partition("/")[2]
    popalign("export", "preferences", key, str(tmp_path / "exported"), "--root", root)
    popalign("plan", *how)

    collector.wait_for(N_COLLECTIONS)
    deleted = {line for each in collector.lines() for line in each.split("\\n") if "deleted " in line}
    gone = {line.rpartition("deleted ")[2] for line in deleted if not line.endswith("MiB")}
    assert {each.partition("/")[0] for each in gone} == {"scores"}
    assert len(gone) <= n_commands, "more than the litter went"

    popalign("run", *how, "--name", "one", "--replace", "--set", "training.seed=3")
    assert [line for line in collector.lines() if not line.startswith("0 ")] == []
    sys.stderr.write(f"{len(collector.lines())} collections beside {n_commands} commands\n")
    result = CliRunner().invoke(app, ["verify", "--root", root])
    assert result.exit_code == 0, result.output
    for run in (Path(root) / "runs").iterdir():
        for name in ("run.json", "reserved.json"):
            if (run / name).exists():
                for ref in json.loads((run / name).read_text())["artifacts"]:
                    assert Store(root).is_published(ArtifactRef(*ref)), (run, ref)
