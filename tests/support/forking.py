"""Forks of a process that computes."""

import pytest
import torch


def skip_with_several_threads() -> None:
    """OpenMP's threads do not come along into a fork, which would wait for them at its first parallel loop."""
    if torch.get_num_threads() > 1:
        pytest.skip("forks a process with several OpenMP threads; set OMP_NUM_THREADS=1")
