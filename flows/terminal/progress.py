"""Progress of long work: a bar with rate and time left on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 10.0


class PlainProgress:
    """One line when a piece of work starts, every ten seconds, and when it ends.

    Args:
        stream: Where lines go; stderr if not given.
        clock: Seconds, ever increasing.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._started = dict[str, tuple[float, int]]()
        self._last = dict[str, tuple[float, int]]()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.flush()

    def __call__(self, label: str, done: int, total: int) -> None:
        """Say that `done` of `total` pieces of the work called `label` are ready."""
        now = self._clock()
        last_time, last_done = self._last.get(label, (float("-inf"), done))
        if done < last_done:  # other work of the same name
            last_time = float("-inf")
            del self._started[label]
        start = self._started.setdefault(label, (now, done))
        is_due = done >= total or now - last_time >= SECONDS_BETWEEN_LINES
        self._last[label] = (now if is_due else last_time, done)
        if not is_due:
            return
        print(plain_line(label, done, total, done - start[1], now - start[0]), file=self._stream, flush=True)


class BarProgress:
    """A bar for each piece of work, by rich."""

    def __init__(self) -> None:
        self._bars: Progress = _bars()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, label: str, done: int, total: int) -> None:
        """Say that `done` of `total` pieces of the work called `label` are ready."""
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total, completed=done)
        self._bars.update(self._tasks[label], completed=done, total=total)


def console_progress() -> PlainProgress | BarProgress:
    """The bar when stderr is a terminal, plain lines when it is a file, a pipe or a CI log."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress()


def plain_line(label: str, done: int, total: int, done_here: int, seconds: float) -> str:
    """`sample 64/480, 12.3/s, 0:34 left`; rate and time left count only what was done in this process."""
    line = f"{label} {done}/{total}"
    if done_here <= 0 or seconds <= 0:
        return line
    rate = done_here / seconds
    left = round((total - done) / rate)
    return f"{line}, {rate:.1f}/s, {left // 60}:{left % 60:02d} left"


def _bars() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: object) -> Text:
            speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
            return Text("" if speed is None else f"{speed:.1f}/s")

    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
