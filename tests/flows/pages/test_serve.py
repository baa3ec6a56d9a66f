"""`popalign serve`: a real process, real requests, and those that no browser would send."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import s3fs
from chromium_pages import DESKTOP, NEEDS_CHROMIUM, open_page
from moto.server import ThreadedMotoServer
from pages_server import PagesServer
from read_only import read_only
from run_folders import PAGE, put_run
from starlette.testclient import TestClient
from typer.testing import CliRunner

from flows.cli.app import app
from flows.pages.pages_app import make_pages_app
from flows.review.server_settings import ReviewSettings
from storage.readable_runs import ReadableRuns
from storage.store import Store

RUN = ("train", "report")
TOKEN = "a-token-of-this-test"
SECRET = "not for readers"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a store with runs, and with secrets beside what can be read."""
    root = tmp_path_factory.mktemp("serve") / "store"
    store = Store(str(root))
    put_run(
        store, "mine", RUN, {"report.html": PAGE + f'<img alt="p" src="{PIXEL}">', "report.md": "**✔ Fairer on race**"}
    )
    put_run(store, "begun", RUN, {}, is_done=False)
    put_run(store, "torn", RUN)
    (root / "runs" / "torn" / "run.json").write_text("{")
    odd = root / "runs" / "a b?#%2e é"
    odd.mkdir()
    (odd / "re port#1.html").write_text(PAGE)
    (root / "leaderboard.html").write_text("<p>the board")
    for place in (root.parent, root, root / "runs", root / "runs" / ".hidden"):
        place.mkdir(exist_ok=True)
        (place / "secret.html").write_text(SECRET)
    mine = root / "runs" / "mine"
    (mine / "model").mkdir()
    for file in ("model/README.md", "model/index.html", "weights.safetensors", "x.html.1.partial", ".secret.html"):
        (mine / file).write_text(SECRET)
    (mine / "linked.html").symlink_to(root.parent / "secret.html")
    (root / "runs" / "linked").symlink_to(root.parent, target_is_directory=True)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[PagesServer]:
    with PagesServer(str(root)) as server:
        yield server


def content(root: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in (root, *root.rglob("*")))


def test_runs_are_listed_and_their_links_open(server: PagesServer) -> None:
    page = httpx.get(server.url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for said in ("1 complete run in ", "✔ Fairer on race", "running, or ended early", "its run.json cannot be read"):
        assert said in page.text, said
    links = [part.partition('"')[0] for part in page.text.split('href="')[1:]]
    assert "/runs/mine/report.html" in links
    assert "/runs/a%20b%3F%23%252e%20%C3%A9/re%20port%231.html" in links
    assert {link: httpx.get(server.url + link).status_code for link in links} == dict.fromkeys(links, 200)
    assert SECRET not in page.text


def test_a_report_has_its_stable_address_and_is_whole(server: PagesServer, root: Path) -> None:
    answer = httpx.get(f"{server.url}/runs/mine/report.html")
    assert answer.content == (root / "runs" / "mine" / "report.html").read_bytes()
    assert int(answer.headers["content-length"]) == len(answer.content)
    head = httpx.head(f"{server.url}/runs/mine/report.html")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(answer.content)))
    assert httpx.get(f"{server.url}/leaderboard.html").text == "<p>the board"
    assert httpx.get(f"{server.url}/runs/mine/report.md").headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/runs/mine/report.html", "/runs/mine/none.html", "/nothing"])
def test_every_answer_has_the_security_headers(path: str, server: PagesServer) -> None:
    headers = httpx.get(server.url + path).headers
    assert headers["content-security-policy"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
    assert (headers["referrer-policy"], headers["cache-control"]) == ("no-referrer", "no-store")


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../../secret.html",
        "/runs/../secret.html",
        "/../secret.html",
        "/runs/%2e%2e/secret.html",
        "/runs/%2e%2e/%2e%2e/secret.html",
        "/runs/mine/../../../secret.html",
        "/runs/mine/..%2f..%2f..%2fsecret.html",
        "/runs/mine/%2e%2e%2fsecret.html",
        "/runs/mine/%252e%252e%252fsecret.html",
        "/runs/..%2f..%2f/secret.html",
        "/runs/mine/..%5c..%5csecret.html",
        "/runs/mine%00/report.html",
        "/runs/mine/secret.html%00.html",
        "/runs/%00/secret.html",
        "/runs/./secret.html",
        "/runs//secret.html",
        "//secret.html",
        "/secret.html",
        "/runs/secret.html",
        "/runs/.hidden/secret.html",
        "/runs/mine/.secret.html",
        "/runs/mine/linked.html",
        "/runs/linked/secret.html",
        "/runs/mine/model/README.md",
        "/runs/mine/model%2findex.html",
        "/runs/mine/weights.safetensors",
        "/runs/mine/x.html.1.partial",
        "/runs/mine/reserved.json",
        "/runs/%ff%fe/report.html",
        f"/runs/{'x' * 3000}/report.html",
        "/runs/begun/report.html",
        "/runs/mine/report.html/",
        "/reviews.sqlite",
        "/leaderboard.parquet",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_else_is_served(path: str, server: PagesServer) -> None:
    said = server.get(path)
    assert said.startswith(b"HTTP/1.1 404 "), said[:300]
    assert SECRET.encode() not in said
    assert b"Traceback" not in said


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(method: str, server: PagesServer, root: Path) -> None:
    before = content(root)
    for path in ("/", "/leaderboard.html", "/runs/mine/report.html"):
        assert httpx.request(method, server.url + path, content=b"x").status_code == 405
    assert content(root) == before


@pytest.mark.parametrize("host", [b"evil.example", b"evil.example:8710", b"127.0.0.1.evil.example", b"", b"["])
def test_other_names_are_refused(host: bytes, server: PagesServer) -> None:
    said = server.raw(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert f"has another name; open {server.url}.".encode() in said
    assert b"X-Frame-Options".lower() in said.lower()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_the_names_of_this_machine_are_answered(host: str, server: PagesServer) -> None:
    assert httpx.get(server.url, headers={"Host": f"{host}:{server.port}"}).status_code == 200


def test_nothing_is_written_also_where_nothing_can_be(root: Path) -> None:
    before = content(root)
    with read_only(root), PagesServer(str(root)) as server:
        assert httpx.get(f"{server.url}/runs/mine/report.html").status_code == 200
        assert "Fairer on race" in httpx.get(server.url).text
    assert content(root) == before
    assert "Traceback" not in server.log


def test_runs_that_come_and_go_while_it_serves(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with PagesServer(store.root) as server:
        assert "There are no runs yet" in httpx.get(server.url).text
        put_run(store, "late", RUN, is_done=False)
        assert "running, or ended early" in httpx.get(server.url).text
        put_run(store, "late", RUN)
        assert "1 complete run in" in httpx.get(server.url).text
        (tmp_path / "store").rename(tmp_path / "away")
        assert httpx.get(f"{server.url}/runs/late/report.html").status_code == 404
        (tmp_path / "away").rename(tmp_path / "store")
        assert httpx.get(f"{server.url}/runs/late/report.html").text == PAGE


def test_a_large_report_is_served_in_blocks(tmp_path: Path) -> None:
    store, size = Store(str(tmp_path / "store")), 60 << 20
    put_run(store, "large", RUN)
    report = tmp_path / "store" / "runs" / "large" / "report.html"
    report.write_bytes(b"0123456789abcdef" * (size // 16))

    def peak_kib() -> int:
        lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    with PagesServer(store.root) as server:
        httpx.get(server.url)
        before = peak_kib()
        assert httpx.get(f"{server.url}/runs/large/report.html").content == report.read_bytes()
        assert peak_kib() - before < (size >> 10) / 2
        # who goes away in the middle disturbs nobody
        with httpx.stream("GET", f"{server.url}/runs/large/report.html") as answer:
            next(answer.iter_raw())
        assert httpx.get(server.url).status_code == 200
    assert "Traceback" not in server.log


def test_a_token_lets_readers_in_by_any_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with PagesServer(str(root), "--host", "0.0.0.0", "--token-file", str(tmp_path / "token")) as server:
        for path in ("/", "/runs/mine/report.html", "/leaderboard.html"):
            refused = httpx.get(server.url + path)
            assert (refused.status_code, refused.headers["www-authenticate"][:6]) == (401, "Basic ")
            assert "Report" not in refused.text
            assert httpx.get(server.url + path, auth=("me", TOKEN)).status_code == 200
            assert httpx.get(server.url + path, auth=(TOKEN, "wrong")).status_code == 401
        tries = [httpx.get(server.url, auth=("me", f"guess {n}")).status_code for n in range(40)]
        assert (tries[0], tries[-1]) == (401, 429)
    assert TOKEN not in server.log


def test_a_proxy_on_this_machine_may_keep_its_own_name_where_there_is_a_token(root: Path) -> None:
    for token, answers in ((TOKEN, [401, 200]), (None, [400, 400])):
        pages = make_pages_app(ReadableRuns(str(root)), ReviewSettings(token=token))
        with TestClient(pages, base_url="https://pages.example") as reader:
            assert [reader.get("/", auth=auth).status_code for auth in (None, ("me", TOKEN))] == answers


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--host", "0.0.0.0"), 2, "--host 0.0.0.0 is open to other machines; give a token with --token"),
        (("--token", "short"), 2, "the token has 5 characters; give at least 16 random ones"),
        (("--token", "täuschend-langes-wort"), 2, "characters other than ASCII"),
        (("--token-file", "/nowhere/token"), 3, "/nowhere/token cannot be read"),
        (("--host", "::1", "--root", "ROOT/none"), 5, "there is no store at ROOT/none; give the --root of one"),
        (("--host", "127.0.0.99.1", "--token", TOKEN), 2, "give another --host or --port"),
        (("--host", "192.0.2.1", "--token", TOKEN), 2, "this machine has no such address; give another --host"),
        (("--port", "70000"), 2, "should be less than or equal to 65535"),
    ],
)
def test_mistakes_have_a_message_and_a_code(
    words: tuple[str, ...], code: int, said: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    place = str(root)
    arguments = [word.replace("ROOT", place) for word in words]
    done = CliRunner().invoke(app, ["serve", "--root", place, *arguments])
    assert (done.exit_code, said.replace("ROOT", place) in done.output) == (code, True), done.output
    assert not (root / "none").exists()


def test_a_port_in_use_is_said(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["serve", "--root", str(root), "--port", port])
    assert done.exit_code == 2
    assert f"cannot listen on 127.0.0.1 port {port}: the port is in use; give another --port" in done.output


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    for name, value in {
        **{"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
        **{"AWS_DEFAULT_REGION": "us-east-1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield boto3.resource("s3").create_bucket(Bucket="popalign-pages")
    moto.stop()


def test_a_store_on_s3(bucket: Any, tmp_path: Path) -> None:
    root = "s3://popalign-pages/team"
    store = Store(root, scratch=str(tmp_path / "scratch"))
    put_run(store, "mine", RUN)
    for key in ("team/runs/mine/model/model.safetensors", "team/runs/mine/model/README.md", "secret.html"):
        bucket.put_object(Key=key, Body=SECRET.encode())
    bucket.put_object(Key="team/leaderboard.html", Body=b"<p>the board")

    def objects() -> list[tuple[str, Any]]:
        return [(each.key, each.last_modified) for each in bucket.objects.all()]

    before = objects()
    with PagesServer(root) as server:
        page = httpx.get(server.url).text
        assert "1 complete run in s3://popalign-pages/team" in page
        assert "✔ Fairer on gender" in page
        assert f"{before[-1][1]:%Y-%m-%d %H:%M}" in page
        assert httpx.get(f"{server.url}/runs/mine/report.html").text == PAGE
        assert httpx.get(f"{server.url}/leaderboard.html").text == "<p>the board"
        for path in (
            *("/runs/mine/model/README.md", "/runs/..%2f..%2f/secret.html", "/runs/%2e%2e/%2e%2e/secret.html"),
            *("/runs/mine/..%2f..%2f..%2fsecret.html", "/runs/mine/none.html", "/runs/none/report.html"),
            *("/runs/mine/report.html%3fversionId=x", "/runs/mine%3fversionId=x/report.html"),
        ):
            said = server.get(path)
            assert said.startswith(b"HTTP/1.1 404 "), path
            assert SECRET.encode() not in said
    assert objects() == before
    done = CliRunner().invoke(app, ["serve", "--root", "s3://popalign-pages/none"])
    assert (done.exit_code, "there is no store at popalign-pages/none" in done.output) == (5, True), done.output


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_styles_and_images_of_a_report_show_in_a_browser(browser: Any, server: PagesServer) -> None:
    page, wrong = open_page(browser, f"{server.url}/runs/mine/report.html", **DESKTOP)
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(1, 2, 3)"
    assert page.evaluate("document.images[0].naturalWidth") == 1
    page.goto(server.url)
    page.click("text=report.html >> nth=0")
    assert page.title() == "a report"
    assert wrong == []
