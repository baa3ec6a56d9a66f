"""What can go wrong with a download, each in words of its own; and trying again where patience helps."""

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from httpx2 import HTTPError, HTTPStatusError, InvalidURL, ProxyError, TransportError, UnsupportedProtocol
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from popalign_core.errors import ConfigError, MissingWeightsError, PopAlignError, ServiceError, StoreError
from popalign_core.prompts.pacing import backoff_s, retry_after_s
from popalign_core.sources import HubFiles, Source

T = TypeVar("T")
REMOTE_ERRORS = (HTTPError, InvalidURL, OfflineModeIsEnabled, LocalEntryNotFoundError, OSError)
"""What the two clients raise."""
_MOST_FAILURES = 6
_LONGEST_REQUEST_S = 600.0
"""A server that asks for more patience than this is better asked again by a later command."""
_PASSING = (408, 429, 500, 502, 503, 504)
_AGAIN = "the same command resumes"


def keep_trying(work: Callable[[], T], source: Source, n_done: Callable[[], int] = lambda: 0) -> T:
    """Do something that the network may spoil, again while that may help: cut connections, 429, errors of a server.

    Args:
        work: What is done; it goes on where it stopped.
        source: For messages.
        n_done: How far it has come: failures count only as long as that stands still.

    Raises:
        PopAlignError: That says what went wrong, and what to do.
    """
    failures, before = 0, n_done()
    while True:
        try:
            return work()
        except REMOTE_ERRORS as error:
            failures = failures + 1 if n_done() <= before else 1
            before = max(before, n_done())
            pause = _pause(error, failures)
            if pause is None or failures >= _MOST_FAILURES:
                raise in_words(error, source) from error
            time.sleep(pause)


def in_words(error: Exception, source: Source) -> PopAlignError:
    """The project's error for one of the clients'."""
    if isinstance(error, OfflineModeIsEnabled):
        return ConfigError("HF_HUB_OFFLINE forbids every download; unset it, or copy the files by hand")
    if isinstance(error, InvalidURL | UnsupportedProtocol):
        return ConfigError(
            f"{_address(source)} is not a valid address ({error}); set HF_ENDPOINT and POPALIGN_FILES_ENDPOINT to "
            "addresses such as https://mirror.example, or unset them"
        )
    if (status := _status(error)) is not None:
        return _refused(error, status, source)
    if isinstance(error, ProxyError):
        return ServiceError(
            f"the proxy on the way to {_address(source)} fails ({_reason(error)}); look at $HTTPS_PROXY; {_AGAIN}"
        )
    if isinstance(error, TransportError | LocalEntryNotFoundError | ConnectionError):
        return ServiceError(
            f"the connection to {_address(source)} fails ({_reason(error)}); look at network and proxy; {_AGAIN}"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"the disk is full ({error}); make room; {_AGAIN}")
    return StoreError(f"cannot write what {_address(source)} sends ({_reason(error)}); {_AGAIN}")


def _refused(error: Exception, status: int, source: Source) -> PopAlignError:
    where = _address(source)
    if isinstance(error, GatedRepoError):
        return MissingWeightsError(
            f"{where} is gated: accept its license on its page, then set HF_TOKEN to a token of that account (or run "
            "`hf auth login`), and run the same command"
        )
    if isinstance(error, RevisionNotFoundError):
        revision = source.revision if isinstance(source, HubFiles) else ""
        return ConfigError(f"{where} has no revision {revision!r}; give one of its commits as model.revision")
    if isinstance(error, RepositoryNotFoundError):
        return ConfigError(
            f"there is no repository {where}, or it is private; correct the name, or set HF_TOKEN to a token that may "
            "read it"
        )
    if isinstance(error, EntryNotFoundError) or status in (404, 410):
        return MissingWeightsError(
            f"{where} has no such file ({status}); look where it has moved to, and put it where it belongs by hand"
        )
    if status == 401:
        return ConfigError(f"{where} refuses the token (401); correct HF_TOKEN, or unset it for public weights")
    if status == 403:
        return ConfigError(f"{where} refuses access (403); give a token in HF_TOKEN that may read it")
    if status == 429:
        return ServiceError(f"{where} answers too many requests (429); wait {_said_wait(error)}; {_AGAIN}")
    return ServiceError(f"{where} answers {status}; {_AGAIN}")


def _pause(error: Exception, failures: int) -> float | None:
    """Seconds until the next try; None when no patience helps."""
    if (status := _status(error)) is not None:
        asked = _asked_wait(error) or 0.0
        return max(asked, backoff_s(failures)) if status in _PASSING and asked <= _LONGEST_REQUEST_S else None
    is_final = isinstance(error, UnsupportedProtocol | OfflineModeIsEnabled)
    return backoff_s(failures) if isinstance(error, TransportError | ConnectionError) and not is_final else None


def _status(error: Exception) -> int | None:
    return int(_response(error).status_code) if isinstance(error, HfHubHTTPError | HTTPStatusError) else None


def _response(error: Any) -> Any:
    return error.response


def _asked_wait(error: Exception) -> float | None:
    """By the hub's own header, or by HTTP's."""
    headers = _response(error).headers
    limit = parse_ratelimit_headers(headers)
    return retry_after_s(headers) if limit is None or limit.remaining else float(limit.reset_in_seconds)


def _said_wait(error: Exception) -> str:
    asked = _asked_wait(error)
    return "a while" if asked is None else f"{asked:.0f} s"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


def _address(source: Source) -> str:
    if isinstance(source, HubFiles):
        return f"{constants.ENDPOINT}/{source.repo}"
    return f"{source.place.name} at {urlsplit(source.url).netloc}"
