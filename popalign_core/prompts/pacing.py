"""When a call to a service may leave: not faster than agreed, not before the service said, not beyond the budget."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from threading import Condition, Event, Lock

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
"""Of the back-off, which doubles with every try; a service's own Retry-After may be longer."""


class StoppedError(Exception):
    """Another call failed for good, so this one was not begun, or not tried again."""


class SpentError(Exception):
    """The budget does not hold another call; the argument says which limit was met."""


class Pace:
    """Lets requests leave one by one, at most so many a minute, evenly spaced."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = Lock()
        self._stopped = Event()

    def wait(self) -> None:
        """Return when a request may leave.

        Raises:
            StoppedError: When `stop` was called, before or meanwhile.
        """
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._next and not self._stopped.is_set():
                    self._next = now + self._gap_s
                    return
                left = self._next - now
            self.rest(left)

    def hold(self, seconds: float) -> None:
        """Let nothing leave for so long: the service asked one of several for patience and means all."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def rest(self, seconds: float) -> None:
        """Sleep, unless stopped.

        Raises:
            StoppedError: When `stop` was called, before or meanwhile.
        """
        if self._stopped.wait(seconds):
            raise StoppedError

    def stop(self) -> None:
        """Let nothing leave any more, and wake up who waits."""
        self._stopped.set()


class Budget:
    """Calls and tokens that may be paid for; safe to use from several threads.

    So that calls in parallel cannot overrun the tokens together, each under way is reckoned with as many as the
    largest so far took, and until one was seen they go one at a time.
    """

    def __init__(self, max_calls: int, max_tokens: int | None) -> None:
        self._max_calls, self._max_tokens = max_calls, max_tokens
        self._n_calls = self._n_tokens = self._largest = self._n_open = 0
        self._changed = Condition()

    def record(self, n_tokens: int) -> None:
        """Count an answer that was paid for in an earlier run."""
        self._n_calls += 1
        self._n_tokens += n_tokens
        self._largest = max(self._largest, n_tokens)

    def open_call(self) -> None:
        """Return when a call fits; `close_call` must follow.

        Raises:
            SpentError: When none will.
        """
        with self._changed:
            while self._n_open and not self._fits():
                self._changed.wait()
            if not self._fits():
                raise SpentError(self._limit())
            self._n_open += 1

    def close_call(self, n_tokens: int | None) -> None:
        """The call is over, at so many tokens; None when no answer came."""
        with self._changed:
            self._n_open -= 1
            if n_tokens is not None:
                self.record(n_tokens)
            self._changed.notify_all()

    def _fits(self) -> bool:
        if self._n_calls + self._n_open >= self._max_calls:
            return False
        if self._max_tokens is None:
            return True
        if not self._largest and self._n_open:
            return False
        return self._n_tokens < self._max_tokens and (
            self._n_tokens + (self._n_open + 1) * self._largest <= self._max_tokens
        )

    def _limit(self) -> str:
        if self._n_calls >= self._max_calls:
            return f"max_calls = {self._max_calls} calls"
        return (
            f"{self._n_tokens} of max_tokens_total = {self._max_tokens} tokens (the largest answer took "
            f"{self._largest})"
        )


def backoff_s(n_tries: int) -> float:
    """How long to wait after so many tries when the service does not say: 0.5 s, doubling, a minute at most."""
    return min(FIRST_WAIT_S * 2.0 ** min(n_tries - 1, 32), LONGEST_WAIT_S)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What a service asks to wait: `retry-after-ms`, or `retry-after` as seconds or as a date; None when it does not.

    Args:
        headers: Of the response, names in lower case or a mapping that does not mind.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if seconds == seconds else None
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None
