"""Forks of a process that computes."""

import os
import signal
from collections.abc import Callable

import pytest
import torch


def skip_with_several_threads() -> None:
    """OpenMP's threads do not come along into a fork, which would wait for them at its first parallel loop."""
    if torch.get_num_threads() > 1:
        pytest.skip("forks a process with several OpenMP threads; set OMP_NUM_THREADS=1")


def run_and_die(run: Callable[[Callable[[str, int, int], None]], object], n_calls: int) -> bool:
    """Run in a process that gets SIGKILL at its n-th sign of progress; whether it ended before that.

    Args:
        run: Given what is told of each sign of progress: (node, done, total).
        n_calls: At which one it is killed.
    """
    skip_with_several_threads()
    child = os.fork()
    if child == 0:
        left = [n_calls]

        def count_down(node: str, done: int, total: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            run(count_down)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"the run failed with {status}"
    return status == 0
