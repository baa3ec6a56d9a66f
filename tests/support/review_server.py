"""`popalign review` as a process of its own, to be killed at will."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).resolve().parents[2]


class ReviewServer:
    """Serves a database on a free port of this machine; `kill` is SIGKILL, `start` starts it again there."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ReviewServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [sys.executable, "-c", "from flows.cli.app import main; main()", "review", "--port", str(self.port)]
        self._process = subprocess.Popen([*command, "--database", self._database_url], cwd=REPOSITORY)
        for _ in range(600):
            try:
                if httpx.get(f"{self.url}/login").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise TimeoutError(f"{self.url} does not answer")

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
