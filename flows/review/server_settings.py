"""Settings of the review server: address, allowed hosts and proxies, rate limits."""

import secrets
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from popalign_core.errors import ConfigError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765
MIN_TOKEN = 16
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ReviewSettings:
    """Checked when made.

    Attributes:
        host: Address to listen on.
        port: To listen on.
        token: What the operator logs in with; None lets everybody on this machine in.
        url: How people reach the app, when that is not http://HOST:PORT.
        trusted_proxies: Addresses whose X-Forwarded-For is believed; all others are counted by their own address.
        max_body: Largest request body, bytes.
        rate: Requests a second that one rater may go on making.
        burst: Requests that one rater may make at once: two sets of 20 pictures, and those of the next question.
        key: Signs the operator's forms and session: the token, so that a session outlives a restart.

    Raises:
        ConfigError: When the app would be reachable from other machines without a token, or the token is short.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    token: str | None = None
    url: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    max_body: int = 64 * 1024
    rate: float = 30.0
    burst: int = 400
    key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.token is None and not (is_loopback(self.host) and is_loopback(urlsplit(self.base_url).hostname or "")):
            url = f" --url {self.url}" if self.url else ""
            raise ConfigError(
                f"--host {self.host}{url} is open to other machines; give a token with --token, or listen on 127.0.0.1"
            )
        if self.token is not None and len(self.token) < MIN_TOKEN:
            raise ConfigError(f"the token has {len(self.token)} characters; give at least {MIN_TOKEN} random ones")
        object.__setattr__(self, "key", self.token or secrets.token_hex(32))

    @property
    def base_url(self) -> str:
        """Start of every link, without a slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.url or f"http://{host}:{self.port}").rstrip("/")

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names this app answers to, which guards against DNS rebinding; None is any (there is a token)."""
        if not is_loopback(self.host):
            return None
        return frozenset({*LOOPBACK_NAMES, urlsplit(self.base_url).hostname or ""})


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
