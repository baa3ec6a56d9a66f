"""A Prefect server that is configured and does not answer: exit code 7, and nothing lost."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows.cli.app import app
from popalign_core.errors import ServiceError
from tasks.workers.prefect_server import check_server, server_errors
from tasks.workers.runners import start_server

NOBODY = "http://127.0.0.1:9/api"


class Answers(BaseHTTPRequestHandler):
    """What a port may hold that is not Prefect's."""

    replies: ClassVar[dict[str, tuple[int, bytes]]] = {}

    def do_GET(self) -> None:
        status, body = self.replies.get(self.path, (404, b"{}"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def other_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


def test_nobody_is_there(tmp_path: Path) -> None:
    with temporary_settings({PREFECT_API_URL: NOBODY}):
        result = CliRunner().invoke(app, ["run", "--prefect", "--preset", "smoke", "--root", str(tmp_path)])
    assert result.exit_code == 7, result.output
    assert f"PREFECT_API_URL {NOBODY} does not answer as one" in result.stderr
    assert "unset PREFECT_API_URL" in result.stderr


def test_workers_are_not_started_without_it() -> None:
    with temporary_settings({PREFECT_API_URL: NOBODY}), pytest.raises(ServiceError, match="does not answer as one"):
        start_server()


@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        ({}, "404"),
        ({"/api/health": (200, b"true"), "/api/version": (200, b"<html>a router</html>")}, "does not answer as one"),
        (
            {"/api/health": (200, b"true"), "/api/admin/version": (200, json.dumps("2.20.3").encode())},
            "incompatible versions",
        ),
        ({"/api/health": (401, b"{}")}, "401"),
    ],
)
def test_something_else_is_there(
    replies: dict[str, tuple[int, bytes]], problem: str, other_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answers, "replies", replies)
    with temporary_settings({PREFECT_API_URL: other_server}), pytest.raises(ServiceError, match=problem):
        check_server()


@pytest.mark.parametrize("url", ["http://", "127.0.0.1:4200", "ftp://127.0.0.1/api"])
def test_an_address_that_is_none(url: str) -> None:
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(ServiceError, match="does not answer as one"):
        check_server()


def test_errors_of_the_work_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^loss is odd$"), server_errors():
        raise RuntimeError("loss is odd")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PREFECT_API_REQUEST_TIMEOUT", "soon"),
        ("PREFECT_SERVER_API_PORT", "80x"),
        ("PREFECT_HOME", "with a damaged profiles.toml"),
    ],
)
def test_settings_that_prefect_cannot_read(variable: str, value: str, tmp_path: Path) -> None:
    """In a process of its own: Prefect reads them once, when it is imported."""
    home = tmp_path / "with a damaged profiles.toml"
    home.mkdir()
    (home / "profiles.toml").write_text("not toml")
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path),
        variable: str(home) if variable == "PREFECT_HOME" else value,
    }
    command = [sys.executable, "-c", "from flows.cli.app import main; main()", "run", "--prefect", "--preset", "smoke"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "popalign: Prefect cannot read its settings (" in done.stderr
    assert "Traceback" not in done.stderr
