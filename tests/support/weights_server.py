"""A server on this machine that speaks as the Hugging Face hub and as hosts of files do, and misbehaves on demand."""

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
TOKEN = "hf_right"
_CHUNK = 16384


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Files of one commit; those of weights are stored as the hub's LFS stores them."""

    files: dict[str, bytes]
    license: str | None = None
    is_gated: bool = False
    is_private: bool = False

    @classmethod
    def of_folder(cls, folder: Path, license: str | None = None) -> "Repository":
        found = [path for path in folder.rglob("*") if path.is_file()]
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in found}, license)

    def is_large(self, name: str) -> bool:
        return not name.endswith((".json", ".txt"))


@dataclass
class Faults:
    """What goes wrong. Numbers count down with every request for a file's bytes."""

    cuts: int = 0  # connections that end in the middle
    throttled: int = 0  # answers 429
    retry_after: str = "0"
    broken: int = 0  # answers 503
    lies: int = 0  # answers with other bytes than promised
    ignores_range: bool = False
    tells_names_alone: bool = False
    refuses_head: bool = False  # of single files
    bytes_per_s: float = 0.0  # 0 is as fast as it goes
    other_host: str = ""  # where redirects of large files lead, in place of this machine's other name


class WeightsServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.files: dict[str, bytes] = {}
        self.faults = Faults()
        self.lock = threading.Lock()
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.n_sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed, or that has enough, is no error of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def take(self, fault: str) -> bool:
        """Whether a fault is due; one less is then."""
        with self.lock:
            left = getattr(self.faults, fault)
            if left > 0:
                setattr(self.faults, fault, left - 1)
            return left > 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WeightsServer

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            self.server.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        try:
            if path.startswith("/api/models/"):
                self._tell(path.removeprefix("/api/models/"))
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(*match.groups())
            elif path.startswith("/cdn/"):
                repo, _, name = path.removeprefix("/cdn/").partition("//")
                self._send(self.server.repositories[repo].files[name], {})
            elif path in self.server.files and self.command == "HEAD" and self.server.faults.refuses_head:
                self._refuse(403, "")
            elif path in self.server.files:
                content = self.server.files[path]
                self._send(content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})
            else:
                self._refuse(404, "EntryNotFound")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _tell(self, path: str) -> None:
        repo = "/".join(path.split("/")[:2])
        repository = self._look_up(repo)
        if repository is None:
            return
        if path.endswith("/auth-check"):
            if self._may_read(repository):
                self._json({})
            return
        revision = path.partition("/revision/")[2]
        if revision not in ("", "main", COMMIT):
            self._refuse(404, "RevisionNotFound")
            return
        siblings = []
        for name, content in repository.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            if repository.is_large(name):
                lfs = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
                entry["lfs"] = lfs
            if self.server.faults.tells_names_alone:
                entry = {"rfilename": name}
            siblings.append(entry)
        gated = "auto" if repository.is_gated else False
        card = {} if repository.license is None else {"cardData": {"license": repository.license}}
        self._json(
            {"id": repo, "sha": COMMIT, "gated": gated, "private": False, "siblings": siblings, "tags": []} | card
        )

    def _look_up(self, repo: str) -> Repository | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        repository = self.server.repositories.get(repo)
        if token and token != TOKEN:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.is_private and token != TOKEN):
            self._refuse(401, "RepoNotFound")
        else:
            return repository
        return None

    def _may_read(self, repository: Repository) -> bool:
        if repository.is_gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(403, "GatedRepo")
            return False
        return True

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        repository = self._look_up(repo)
        if repository is None or not self._may_read(repository):
            return
        if name not in repository.files:
            self._refuse(404, "EntryNotFound")
            return
        content = repository.files[name]
        headers = {"X-Repo-Commit": COMMIT}
        if not repository.is_large(name):
            self._send(content, headers | {"ETag": f'"{git_sha1(content)}"'})
            return
        host = self.server.faults.other_host or f"http://localhost:{self.server.server_port}"
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{host}/cdn/{repo}//{name}",
            "Content-Length": "0",
        }
        self._head(302, headers)

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        if self.command == "HEAD":
            self._head(200, headers | {"Content-Length": str(len(content)), "Accept-Ranges": "bytes"})
            return
        if self.server.take("throttled"):
            self._head(429, {"Retry-After": self.server.faults.retry_after, "Content-Length": "0"})
            return
        if self.server.take("broken"):
            self._head(503, {"Content-Length": "0"})
            return
        if self.server.take("lies"):
            content = bytes(255 - byte for byte in content[:100]) + content[100:]
        start = int((re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        if self.server.faults.ignores_range or self.headers.get("If-Range", headers.get("ETag")) != headers.get("ETag"):
            start = 0
        if start and start >= len(content):
            self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        body = content[start:]
        if start:
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self._head(206 if start else 200, headers | {"Content-Length": str(len(body))})
        self._pour(body[: len(body) // 2] if (is_cut := self.server.take("cuts")) else body)
        self.close_connection = is_cut

    def _pour(self, body: bytes) -> None:
        rate = self.server.faults.bytes_per_s
        for start in range(0, len(body), _CHUNK):
            chunk = body[start : start + _CHUNK]
            self.wfile.write(chunk)
            with self.server.lock:
                self.server.n_sent += len(chunk)
            if rate:
                time.sleep(len(chunk) / rate)

    def _json(self, document: object) -> None:
        body = json.dumps(document).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message or code, "Content-Length": "0"}
        self._head(status, headers)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def serve_weights() -> Iterator[WeightsServer]:
    server = WeightsServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
