"""SIGTERM, with which schedulers announce that they take a machine back: finish the step, save, and go."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Preemption:
    """Whether SIGTERM has come.

    Attributes:
        requested: Set by the signal.
    """

    requested = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True


@contextmanager
def watch_preemption() -> Iterator[Preemption]:
    """Within the block SIGTERM only sets a flag; afterwards the earlier handler is back.

    An earlier handler of the host's own (Prefect's, which marks the flow run) then gets the signal after all. Outside
    the main thread signals cannot be caught, and nothing changes.
    """
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    earlier = signal.signal(signal.SIGTERM, preemption._note)
    try:
        yield preemption
    finally:
        signal.signal(signal.SIGTERM, earlier)
        if preemption.requested and callable(earlier):
            os.kill(os.getpid(), signal.SIGTERM)
