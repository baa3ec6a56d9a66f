"""`popalign serve` as a process of its own."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).resolve().parents[2]


class PagesServer:
    """Serves a store on a free port of this machine.

    Attributes:
        port: Of the server.
        url: Of the list of runs, without a slash at the end.
        log: What it printed, once it has ended.
    """

    def __init__(self, root: str, *words: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url, self.log = f"http://127.0.0.1:{self.port}", ""
        command = "from flows.cli.app import main; main()"
        words = ("serve", "--root", root, "--port", str(self.port), *words)
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, *words],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __enter__(self) -> "PagesServer":
        for _ in range(600):
            assert self._process.poll() is None, self._process.communicate()[1]
            try:
                httpx.get(f"{self.url}/nothing")
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return self
        raise TimeoutError(f"{self.url} does not answer")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self.log = self._process.communicate(timeout=30)[1]

    def raw(self, request: bytes) -> bytes:
        """The whole answer to bytes that no client would send."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            said = b""
            while chunk := connection.recv(65536):
                said += chunk
        return said

    def get(self, path: str) -> bytes:
        """The whole answer to a path that is sent as it is."""
        return self.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n\r\n".encode())
