"""How fast a stage goes, read off the moments at which it reports progress."""

import time
from collections.abc import Callable
from itertools import pairwise

from tasks.common.stage_object import Progress, no_progress


class Stopwatch:
    """A progress callback that remembers when how much was done, and hands everything on.

    Attributes:
        total: Units of the whole work, as last reported.
    """

    def __init__(self, tell: Progress = no_progress, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start the clock.

        Args:
            tell: What it stands before.
            clock: Seconds, ever increasing.
        """
        self._tell, self._clock = tell, clock
        self._began = clock()
        self._moments: list[tuple[int, float]] = []
        self.total = 0

    def __call__(self, done: int, total: int) -> None:
        """Note how much is done."""
        self.total = total
        if not self._moments or done > self._moments[-1][0]:
            self._moments.append((done, self._clock()))
        self._tell(done, total)

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return self._clock() - self._began

    @property
    def is_idle(self) -> bool:
        """Whether nothing was reported: the stage's artifact was there."""
        return not self._moments

    def count(self) -> int:
        """Units done here: what a killed attempt left behind does not count."""
        if not self._moments:
            return 0
        (first, _), (last, _) = self._moments[0], self._moments[-1]
        piece = self._moments[1][0] - first if len(self._moments) > 1 else first
        # a report before any work says what was there; training reports after its first step only
        return last if first <= piece else last - first

    def unit_s(self) -> float | None:
        """Seconds a unit in between; None when there is no in between.

        The first piece is left out, since models are loaded in it; so is the last where others remain, since it holds
        what ends the work: a final checkpoint, part of a batch.
        """
        pieces = [(b - a, after - before) for (a, before), (b, after) in pairwise(self._moments)]
        if self._moments and self._moments[0][0] == 0:
            pieces = pieces[1:]
        if len(pieces) > 1:
            pieces = pieces[:-1]
        return sum(each for _, each in pieces) / sum(n for n, _ in pieces) if pieces else None
