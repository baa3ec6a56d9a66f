"""A flow run outlives its worker and its process: killed at random moments, it completes as the same flow run."""

import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect_station import WORKER, Station, deployed_station

from flows.deployment import LOST_AFTER_S

N_KILLS = int(os.environ.get("POPALIGN_KILLS", "3"))
LONGEST_LOSS_S = 600
"""From a kill until the run is at work again: 150 seconds without a heartbeat, and what starts again."""
LONGEST_RUN_S = 3600
log = logging.getLogger(__name__)
SETTINGS = ["runtime.shard_size=4", "runtime.batch_size=4", "training.n_steps=8"]


class Worker:
    """A worker of the pool, and what it starts."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self.start()

    def start(self) -> None:
        log = (self._station.folder / "worker.log").open("ab")
        self._process = subprocess.Popen(
            WORKER, cwd=self._station.folder, env=self._station.env, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def kill(self) -> None:
        """The worker alone."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        for process in flow_processes(self._station):
            with suppress(psutil.Error):
                process.kill()
        self.kill()


def flow_processes(station: Station) -> list[psutil.Process]:
    """Every process that works on a flow run of this server."""
    found, url = [], station.env["PREFECT_API_URL"]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            env = process.environ()
            is_ours = "PREFECT__FLOW_RUN_ID" in env and env.get("PREFECT_API_URL") == url
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def stopped_station(tmp_path: Path) -> Iterator[Station]:
    """A server with all that `popalign deploy` makes, and no worker."""
    with deployed_station(tmp_path) as station:
        station.prefect("deployment", "schedule", "pause", "--all")
        yield station


def start_run(station: Station, root: str) -> str:
    """Ask for a run of the smoke preset in a store of its own; the flow run's id."""
    (deployment,) = station.ask("deployments/filter", {"deployments": {"name": {"any_": ["full-pipeline"]}}})
    parameters = {"preset": "smoke", "settings": [*SETTINGS, f"runtime.root={root}"]}
    made = station.ask(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    return str(made["id"])


def state_of(station: Station, run: str) -> dict[str, Any]:
    state: dict[str, Any] = station.ask(f"flow_runs/{run}")["state"]
    return state


def wait_for(station: Station, run: str, *, working: bool, timeout_s: float) -> bool:
    """Wait until a run has completed, or is at work; whether it has completed."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        state = state_of(station, run)
        if state["type"] == "COMPLETED":
            return True
        assert state["type"] not in ("FAILED", "CANCELLED"), f"{state['message']}\n{station.said()}"
        if working and state["type"] == "RUNNING" and flow_processes(station):
            return False
        time.sleep(1)
    states = station.ask("flow_run_states/?flow_run_id=" + run)
    history = [(each["timestamp"], each["name"], each["message"]) for each in states]
    raise AssertionError(
        f"not {'at work' if working else 'completed'} within {timeout_s} s: {history}\n{station.said()}"
    )


def finished_shards(root: Path) -> dict[str, int]:
    """Every file of a shard that is finished, by artifact and name, with the time it was written."""
    return {
        f"{build.parent.name}/{build.name}/{path.name}": path.stat().st_mtime_ns
        for build in root.glob(".scratch/builds/*/*")
        for path in build.glob("files/*-?????.*")
        if (build / "shards" / f"{path.stem[-5:]}.json").is_file()
    }


def published(root: Path) -> dict[str, bytes]:
    """All tables, reports and weights that a run leaves, by path; logs hold times."""
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.suffix in (".parquet", ".safetensors", ".html") and not name.startswith((".", "logs")):
            found[name] = path.read_bytes()
    return found


def strike(station: Station, worker: Worker, kind: str) -> None:
    """`kill -9` of the worker, of what works on the flow run, or of both at once."""
    victims = flow_processes(station) if kind != "worker" else []
    if kind != "flow":
        worker.kill()
    for process in victims:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    if kind != "flow":
        worker.start()


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_run_that_is_killed_at_random_moments_completes_with_the_same_tables(stopped_station: Station) -> None:
    station, chance = stopped_station, random.Random(0)
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    station.popalign("run", "--preset", "smoke", "--root", "undisturbed", *words)
    expected = published(station.folder / "undisturbed")
    worker, n_kills, n_runs = Worker(station), 0, 0
    try:
        while n_kills < N_KILLS:
            root = f"store-{n_runs}"
            run, shards, n_runs = start_run(station, root), dict[str, int](), n_runs + 1
            while not wait_for(station, run, working=True, timeout_s=LONGEST_LOSS_S) and n_kills < N_KILLS:
                time.sleep(chance.uniform(1, 20))
                shards |= finished_shards(station.folder / root)
                kind = ("worker", "flow", "both")[n_kills % 3]
                strike(station, worker, kind)
                n_kills += 1
                log.info("kill %d (%s) of run %d, %d shards were finished", n_kills, kind, n_runs, len(shards))
                time.sleep(2)
            wait_for(station, run, working=False, timeout_s=LONGEST_RUN_S)
            _check_outcome(station.folder / root, expected, shards)
    finally:
        worker.end()
    types = [each["state"]["type"] for each in station.ask("flow_runs/filter", {})]
    assert types.count("COMPLETED") == n_runs
    assert "RUNNING" not in types


def _check_outcome(root: Path, expected: dict[str, bytes], shards: dict[str, int]) -> None:
    found = published(root)
    by_folder = {name: data for name, data in found.items() if not name.startswith("runs/")}
    wanted = {name: data for name, data in expected.items() if not name.startswith("runs/")}
    assert sorted(by_folder) == sorted(wanted)
    assert [name for name in wanted if by_folder[name] != wanted[name]] == []
    assert any(name.startswith("runs/") and name.endswith("report.html") for name in found)
    remade = [name for name, time_ns in shards.items() if (root / name).stat().st_mtime_ns != time_ns]
    assert remade == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_cancelled_run_stays_cancelled(stopped_station: Station) -> None:
    """Longer than a run may be without a heartbeat; the same run from the start then goes on from the store."""
    station = stopped_station
    worker = Worker(station)
    try:
        run = start_run(station, "store")
        assert not wait_for(station, run, working=True, timeout_s=LONGEST_LOSS_S)
        station.ask(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
        deadline = time.monotonic() + LONGEST_LOSS_S
        while state_of(station, run)["type"] != "CANCELLED":
            assert time.monotonic() < deadline, f"{state_of(station, run)}\n{station.said()}"
            time.sleep(1)
        time.sleep(LOST_AFTER_S + 30)
        assert state_of(station, run)["type"] == "CANCELLED"
        assert flow_processes(station) == []
    finally:
        worker.end()
