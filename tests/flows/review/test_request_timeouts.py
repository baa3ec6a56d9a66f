"""Connections that never end a request, proxies, failures: a real server and real sockets."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from study_worlds import make_study

from flows.review import request_timeouts as patience
from flows.review.app import make_app
from flows.review.request_timeouts import ImpatientProtocol
from flows.review.server_settings import ReviewSettings
from flows.review.sessions import invitation

TOKEN = "a-token-of-this-test"
N_HALF_OPEN = 300


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """(port, link of a rater) of an app whose patience is a second."""
    monkeypatch.setattr(patience, "HEAD_S", 1.0)
    monkeypatch.setattr("flows.review.guard.BODY_S", 1.0)
    database, study, (rater,) = make_study(tmp_path, n_raters=1)
    app = make_app(f"sqlite:///{tmp_path / 'reviews.sqlite'}", ReviewSettings(token=TOKEN, host="0.0.0.0"))

    @app.get("/broken")
    def broken() -> None:
        raise ZeroDivisionError("a fault of ours")

    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="error", http=ImpatientProtocol, proxy_headers=False
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield port, invitation(study, rater.rater_id, f"http://127.0.0.1:{port}")
    running.should_exit = True
    thread.join(10)
    database.close()


def half_open(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(data)
    return connection


def test_raters_go_on_beside_hundreds_who_never_end_a_request(server: Any) -> None:
    port, link = server
    held = [half_open(port, b"GET /login HTTP/1.1\r\nHost: x\r\nX: ") for _ in range(N_HALF_OPEN)]
    with httpx.Client(follow_redirects=True) as rater:
        for _ in range(5):
            start = time.monotonic()
            assert rater.get(link).status_code == 200
            assert time.monotonic() - start < 2
    start = time.monotonic()
    assert all(connection.recv(1) == b"" for connection in held)  # closed, all of them
    assert time.monotonic() - start < 5
    for connection in held:
        connection.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\noperator",
        b"GET /login HTTP/1.1\r\nHost: x\r\n\r\nGET /login HT",
    ],
    ids=["nothing", "half a body", "half of a second request"],
)
def test_whoever_stops_in_the_middle_is_left(data: bytes, server: Any) -> None:
    connection = half_open(server[0], data)
    start, said = time.monotonic(), b""
    while chunk := connection.recv(65536):
        said += chunk
    assert time.monotonic() - start < 8
    if b"POST" in data:
        assert said.startswith(b"HTTP/1.1 408 ")
    connection.close()


def test_an_idle_connection_is_used_again(server: Any) -> None:
    with httpx.Client() as client:
        assert [client.get(f"http://127.0.0.1:{server[0]}/login").status_code for _ in range(3)] == [200] * 3


def test_a_fault_of_ours_has_the_headers_too(server: Any) -> None:
    answer = httpx.get(f"http://127.0.0.1:{server[0]}/broken")
    assert answer.status_code == 500
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "ZeroDivision" not in answer.text


def test_one_address_behind_a_proxy_does_not_shut_out_its_raters(server: Any) -> None:
    port, link = server
    with httpx.Client(follow_redirects=True) as rater, httpx.Client(base_url=f"http://127.0.0.1:{port}") as attacker:
        assert rater.get(link).status_code == 200
        for n in range(40):
            attacker.post("/login", data={"operator_token": f"guess {n}"})
            attacker.get(f"/s/study/join/forged-{n}")
        assert attacker.post("/login", data={"operator_token": "x"}).status_code == 429
        assert rater.get(f"http://127.0.0.1:{port}/s/study").status_code == 200


def test_who_names_another_address_is_counted_all_the_same(server: Any) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server[0]}") as attacker:
        for n in range(40):
            guess, named = {"operator_token": f"guess {n}"}, {"X-Forwarded-For": f"10.0.0.{n}"}
            answer = attacker.post("/login", data=guess, headers=named)
    assert answer.status_code == 429


def test_numbers_of_thousands_of_digits(server: Any) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server[0]}", follow_redirects=True) as operator:
        operator.post("/login", data={"operator_token": TOKEN})
        page = operator.get("/studies/study").text
        form = page[page.index("/invite") :]
        token = form[form.index('name="token" value="') :].split('"')[3]
        answer = operator.post("/studies/study/invite", data={"token": token, "n": "9" * 5000})
        assert (answer.status_code, len(answer.text) < 5000) == (400, True)
