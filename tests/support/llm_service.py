"""A real HTTP server on this machine that speaks as a language model's service does, and misbehaves on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

AT_ONCE = {"retry-after-ms": "1"}  # the back-off would be half a second and more


@dataclass
class Reply:
    status: int = 200
    body: str | bytes = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    is_cut: bool = False  # the connection ends in the middle of the body
    pause_s: float = 0.0  # after each byte of the body


def answer(*subjects: str, **options: object) -> Reply:
    return completion(json.dumps({"subjects": list(subjects)}), **options)


def completion(
    content: object,
    finish_reason: str = "stop",
    n_tokens: int | None = None,
    delay_s: float = 0.0,
    **fields: object,  # of the message
) -> Reply:
    message = {"role": "assistant", "content": content, "refusal": None} | fields
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    document = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    if n_tokens is not None:
        document["usage"] = {"prompt_tokens": 1, "completion_tokens": n_tokens - 1, "total_tokens": n_tokens}
    return Reply(body=json.dumps(document), headers={"Content-Type": "application/json"}, delay_s=delay_s)


class Service(ThreadingHTTPServer):
    """Plays a script, one reply a request, the last one repeated, or answers by the request; keeps what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.respond: Callable[[dict], Reply]
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.authorization: list[str | None] = []
        self.n_answered = self.n_open = self.most_open = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def play(self, *script: Reply) -> None:
        self.answer_with(lambda request: script[min(len(self.requests), len(script)) - 1])

    def answer_with(self, respond: Callable[[dict], Reply]) -> None:
        """Called one at a time, with the request already among `requests`."""
        self.respond = respond
        self.requests.clear()
        self.times.clear()
        self.n_answered = self.most_open = 0

    def receive(self, request: dict, authorization: str | None) -> Reply:
        with self.lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.authorization.append(authorization)
            self.n_open += 1
            self.most_open = max(self.most_open, self.n_open)
            return self.respond(request)

    def close_one(self) -> None:
        with self.lock:
            self.n_open -= 1
            self.n_answered += 1


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = self.server.receive(request | {"path": self.path}, self.headers["Authorization"])
        time.sleep(reply.delay_s)
        payload = reply.body if isinstance(reply.body, bytes) else reply.body.encode()
        try:
            self.send_response(reply.status)
            for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            sent = payload[: len(payload) // 2] if reply.is_cut else payload
            for piece in map(bytes, zip(sent, strict=True)) if reply.pause_s else [sent]:
                self.wfile.write(piece)
                time.sleep(reply.pause_s)
            self.close_connection = reply.is_cut
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up waiting
        self.server.close_one()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
