"""A real Prefect server and a worker that can be killed, both started and stopped here."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 300
COMMAND_TIMEOUT_S = 900
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
WORKER = (*PREFECT, "worker", "start", "--pool", "popalign")


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
def running(
    words: tuple[str, ...], folder: Path, env: dict[str, str], log: Path, typed: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all its children in a group of their own, ended whatever happens; `typed` is what it reads."""
    lines = log.with_suffix(".input")
    lines.write_text(typed, encoding="utf-8")
    with log.open("wb") as stream, lines.open("rb") as given:
        process = subprocess.Popen(
            words, cwd=folder, env=env, stdin=given, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # all of them ended by themselves
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


@contextmanager
def deployed_station(folder: Path) -> Iterator["Station"]:
    """A server with all that `popalign deploy` makes, and no worker."""
    env = environment(folder / "prefect", port := free_port())
    work, log = folder / "work", folder / "server.log"
    work.mkdir()
    serve = (*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with running(serve, work, env, log) as server:
        wait_until_healthy(env["PREFECT_API_URL"], server, log)
        station = Station(work, env)
        station.popalign("deploy")
        yield station


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

    def popalign(self, *words: str) -> str:
        """Run a popalign command in the folder; fail with what it said."""
        command = str(Path(sys.executable).with_name("popalign"))
        done = subprocess.run(
            [command, *words], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
        assert done.returncode == 0, f"popalign {' '.join(words)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def ask(self, path: str, query: dict[str, Any] | None = None) -> Any:
        """What the server's API answers, to a query by POST."""
        body = None if query is None else json.dumps(query).encode()
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(f"{self.env['PREFECT_API_URL']}/{path}", body, headers), timeout=60) as answer:
            return json.load(answer)

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
        return [run for run in self.ask("flow_runs/filter", query) if run["auto_scheduled"]]

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
