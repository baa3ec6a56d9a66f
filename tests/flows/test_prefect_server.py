"""The three uses the project was asked for, on a real Prefect server and worker, both started and stopped here."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pandas as pd
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 300
COMMAND_TIMEOUT_S = 900
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path, port: int) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return inherited | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


@contextmanager
def running(words: tuple[str, ...], folder: Path, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all its children in a group of their own, ended whatever happens."""
    with log.open("wb") as stream:
        process = subprocess.Popen(words, cwd=folder, env=env, stdout=stream, stderr=stream, start_new_session=True)
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=30)


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(1)
    pytest.fail(f"no healthy server at {url} within {START_TIMEOUT_S} s:\n{log.read_text(errors='replace')[-3000:]}")


class Station:
    """A server with the deployments, and a worker in `folder`."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = env

    def prefect(self, *words: str) -> str:
        """Run a prefect command in the repository; fail with what it and the worker said."""
        done = subprocess.run(
            [*PREFECT, *words], cwd=REPOSITORY, env=self.env, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
        worker = self.folder / "worker.log"
        said = worker.read_text(errors="replace")[-4000:] if worker.exists() else ""
        assert done.returncode == 0, f"prefect {' '.join(words)}:\n{done.stdout}{done.stderr}\nworker:\n{said}"
        return done.stdout

    def run(self, deployment: str, **parameters: object) -> str:
        """Run a deployment with the smoke preset and wait for its end."""
        words = [f"--param={name}={json.dumps(value)}" for name, value in (parameters | {"preset": "smoke"}).items()]
        return self.prefect("deployment", "run", deployment, "--watch", *words)

    def artifacts(self) -> set[str]:
        """`stage/key` of everything published."""
        root = self.folder / "artifacts"
        return {str(path.parent.relative_to(root)) for path in root.glob("*/*/manifest.json")}


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    env = environment(tmp_path / "prefect", port := free_port())
    folder, log = tmp_path / "work", tmp_path / "server.log"
    folder.mkdir()
    serve = (*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with running(serve, folder, env, log) as server:
        wait_until_healthy(env["PREFECT_API_URL"], server, log)
        station = Station(folder, env)
        station.prefect("work-pool", "create", "popalign", "--type", "process")
        station.prefect("deploy", "--all")
        work = (*PREFECT, "worker", "start", "--pool", "popalign")
        with running(work, folder, env, folder / "worker.log"):
            yield station


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_pipeline_rerun_of_a_stage_and_new_checkpoints(station: Station) -> None:
    schedule = station.prefect("deployment", "schedule", "ls", "popalign-evaluate/new-checkpoints")
    assert "17 * * * *" in schedule
    # Or else it may come due while this runs, with the full preset.
    station.prefect("deployment", "schedule", "pause", "--all")

    station.run("popalign/full-pipeline", name="smoke")
    run = station.folder / "artifacts" / "runs" / "smoke"
    rows = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert {row["system"] for row in rows} >= {"base", "aligned"}
    assert len(pd.read_parquet(run / "metrics.parquet")) == len(rows)
    assert (run / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert (run / "model" / "model_index.json").is_file()

    before = station.artifacts()
    station.run("popalign-stage/rerun", node="report")
    assert station.artifacts() == before
    station.run("popalign-stage/rerun", node="report", force=True)
    assert {name.split("/")[0] for name in station.artifacts() - before} == {"report"}

    board = station.folder / "artifacts" / "leaderboard.parquet"
    station.run("popalign-evaluate/new-checkpoints")
    first, evaluated = board.read_bytes(), station.artifacts()
    assert pd.read_parquet(board)["checkpoint"].nunique() == 1
    station.run("popalign-evaluate/new-checkpoints")
    assert board.read_bytes() == first
    assert station.artifacts() == evaluated
