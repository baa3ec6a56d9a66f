"""Checks of every request (host name, size, failed log-ins) and the security headers of every answer."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.review.request_timeouts import BODY_S
from flows.review.server_settings import ReviewSettings

_log = logging.getLogger("popalign.review")
RATERS = "/s/"
"""Where the pages of raters begin."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_DENIED = (401, 403)
_ATTEMPTS = 30
"""Denied requests in a row from one address; one more every two seconds."""


class Allowance:
    """A bucket a key, which fills with time; as many keys as fit are remembered, the latest ones."""

    def __init__(self, per_second: float, burst: int, max_keys: int = 10_000) -> None:
        self._per_second, self._burst, self._max_keys = per_second, burst, max_keys
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = Lock()

    def take(self, key: str, n: int = 1) -> bool:
        """Whether the key may go on; takes `n` if so."""
        with self._lock:
            now = time.monotonic()
            level, then = self._levels.pop(key, (float(self._burst), now))
            level = min(self._burst, level + (now - then) * self._per_second)
            is_enough = level >= max(n, 1)
            self._levels[key] = (level - n if is_enough else level, now)
            if len(self._levels) > self._max_keys:
                self._levels.popitem(last=False)
        return is_enough


class Guard:
    """ASGI middleware around the whole app.

    Args:
        app: What answers the requests that pass.
        settings: Of the server.
        headers: Of every answer.
        is_any_host: Whether the app answers to every name: one whose every page needs a token, which no page of another
            site has.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ReviewSettings,
        headers: Mapping[str, str] = HEADERS,
        *,
        is_any_host: bool = False,
    ) -> None:
        self._app, self._settings, self._headers = app, settings, headers
        self._hosts = None if is_any_host else settings.hosts
        self._attempts, self._raters_attempts = Allowance(0.5, _ATTEMPTS), Allowance(0.5, _ATTEMPTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        address = scope["client"][0] if scope["client"] else ""

        is_begun, is_raters = False, scope["path"].startswith(RATERS)

        async def send_guarded(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                headers = MutableHeaders(raw=message["headers"])
                headers.update(self._headers)
                headers.setdefault("Cache-Control", "no-store")
                message["headers"] = headers.raw
                if message["status"] in _DENIED:
                    (self._raters_attempts if is_raters else self._attempts).take(address)
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"], address)
        if refusal is None:
            try:
                body = await asyncio.wait_for(_read_body(receive, self._settings.max_body), BODY_S)
            except TimeoutError:
                refusal = PlainTextResponse("The request took too long.", 408, {"Connection": "close"})
            else:
                refusal = PlainTextResponse("The request is too large.", 413) if body is None else None
        if refusal is not None:
            await refusal(scope, receive, send_guarded)
            return
        try:
            await self._app(scope, _replay(body or b"", receive), send_guarded)
        except Exception:
            if is_begun:
                raise
            # here, where the answer still gets its headers
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await PlainTextResponse("Something went wrong on our side.", 500)(scope, receive, send_guarded)

    def _refusal(self, headers: Headers, path: str, address: str) -> PlainTextResponse | None:
        if self._hosts is not None and _host_name(headers.get("host", "")) not in self._hosts:
            return PlainTextResponse(f"This server has another name; open {self._settings.base_url}.", 400)
        # a rater with a link is counted by the link, in `sessions`: others behind the same proxy do not shut them out
        if path.startswith(RATERS) and "cookie" in headers:
            return None
        if not (self._raters_attempts if path.startswith(RATERS) else self._attempts).take(address, 0):
            return PlainTextResponse("Too many failed attempts; please wait.", 429, {"Retry-After": "10"})
        return None


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _read_body(receive: Receive, max_body: int) -> bytes | None:
    """The whole body; None when it is larger than allowed, whatever the headers say."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > max_body:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
