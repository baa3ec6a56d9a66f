"""Listening, and serving an app there."""

import errno
import socket
from typing import TYPE_CHECKING

from popalign_core.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from flows.review.server_settings import ReviewSettings

_MOST_CONNECTIONS = 1000
"""At once; more are told to come again."""
_REASONS = {
    errno.EADDRINUSE: "the port is in use; give another --port, or end what listens there",
    errno.EACCES: "ports below 1024 are for root; give another --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; give another --host",
}


def listen(settings: "ReviewSettings") -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        ConfigError: When it cannot.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = _REASONS.get(number or 0, f"{error}; give another --host or --port")
        raise ConfigError(f"cannot listen on {settings.host} port {settings.port}: {reason}") from error


def serve_app(app: "FastAPI", settings: "ReviewSettings", listening: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    from flows.review.request_timeouts import ImpatientProtocol

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        http=ImpatientProtocol,
        limit_concurrency=_MOST_CONNECTIONS,
        # otherwise any local process could claim any client address
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
    )
    uvicorn.Server(config).run(sockets=[listening])
