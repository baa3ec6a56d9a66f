"""The uses the project was asked for, on a real Prefect server and worker, both started and stopped here."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pandas as pd
import pytest
import yaml

from popalign_core.portraits import weights_folder

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 300
APPEAR_TIMEOUT_S = 180
"""The scheduler looks every few seconds at deployments that are new, and plans many runs ahead."""
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
    """A server, and a worker in `folder`."""

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

    def scheduled_runs(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs that the server's scheduler has made for a deployment, in the order of their times."""
        query = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
        headers = {"Content-Type": "application/json"}
        url = f"{self.env['PREFECT_API_URL']}/flow_runs/filter"
        with urlopen(Request(url, json.dumps(query).encode(), headers), timeout=60) as answer:
            return [run for run in json.load(answer) if run["auto_scheduled"]]

    def wait_for_completed(self, deployment: str, n: int, timeout_s: float) -> None:
        """Wait for the first n scheduled runs of a deployment; fail on one that ends otherwise."""
        deadline, runs = time.monotonic() + timeout_s, list[dict[str, Any]]()
        while time.monotonic() < deadline:
            runs = self.scheduled_runs(deployment)
            states = [run["state"]["type"] for run in runs]
            assert not set(states) & {"FAILED", "CRASHED", "CANCELLED"}, f"{states}\n{self.said()}"
            if states.count("COMPLETED") >= n:
                return
            time.sleep(2)
        seen = [(run["expected_start_time"], run["state"]["type"]) for run in runs]
        pytest.fail(f"{n} scheduled run(s) did not complete within {timeout_s} s: {seen}\n{self.said()}")

    def said(self) -> str:
        """The end of what server and worker said."""
        logs = (self.folder.parent / "server.log", self.folder / "worker.log")
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-4000:]}" for log in logs if log.exists())


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
        work = (*PREFECT, "worker", "start", "--pool", "popalign")
        with running(work, folder, env, folder / "worker.log"):
            yield station


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_pipeline_rerun_of_a_stage_and_new_checkpoints(station: Station) -> None:
    station.prefect("deploy", "--all")
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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_schedule_makes_runs_and_the_second_finds_nothing_new(station: Station, tmp_path: Path) -> None:
    """The deployment of prefect.yaml on a small preset, every minute in place of every hour."""
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(weights_folder() / "pipeline", checkpoints / "first")
    project = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
    (deployment,) = (each for each in project["deployments"] if each["name"] == "new-checkpoints")
    deployment["parameters"] |= {"preset": "smoke", "watch": str(checkpoints)}
    deployment["schedules"] = [{"interval": 60}]
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump(project), encoding="utf-8")
    station.prefect("deploy", "--prefect-file", str(file), "--name", "new-checkpoints")

    deadline = time.monotonic() + APPEAR_TIMEOUT_S
    while not (appeared := station.scheduled_runs("new-checkpoints")) and time.monotonic() < deadline:
        time.sleep(2)
    assert appeared, f"no scheduled run appeared within {APPEAR_TIMEOUT_S} s\n{station.said()}"

    board = station.folder / "artifacts" / "leaderboard.parquet"
    station.wait_for_completed("new-checkpoints", 1, COMMAND_TIMEOUT_S)
    first, evaluated = board.read_bytes(), station.artifacts()
    assert pd.read_parquet(board)["checkpoint"].nunique() == 1
    assert {name.split("/")[0] for name in evaluated} >= {"sample", "attributes", "evaluate"}
    station.wait_for_completed("new-checkpoints", 2, COMMAND_TIMEOUT_S)
    assert board.read_bytes() == first
    assert station.artifacts() == evaluated
