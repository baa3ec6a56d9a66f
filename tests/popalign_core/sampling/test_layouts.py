"""Which layout is the fastest: by a clock of our own, and that each draws the same images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from popalign_core.config import RuntimeConfig, SamplingConfig
from popalign_core.models.embeddings import embed_prompts
from popalign_core.sampling.layouts import WORTH, Layout, fastest, find_fastest, time_layouts, work_of
from popalign_core.sampling.prediction import Captions
from popalign_core.sampling.sampler import Sampler

DEFAULT, PLAIN = Layout(True, 32), Layout(False, 32)


class Machine:
    """Does a layout's work in so many seconds, each tenth time in five times as many."""

    def __init__(self, seconds: Callable[[Layout], float]) -> None:
        self.now, self.worked, self._seconds = 0.0, list[Layout](), seconds

    def clock(self) -> float:
        return self.now

    def work(self, layout: Layout) -> None:
        self.worked.append(layout)
        self.now += self._seconds(layout) * (5 if len(self.worked) % 10 == 0 else 1)


def test_layouts_take_turns_and_a_slow_moment_does_not_count() -> None:
    """The tenth call, PLAIN's in the fourth round, takes five times as long."""
    machine = Machine(lambda layout: 1.0 if layout.channels_last else 0.5)
    seconds = time_layouts([DEFAULT, PLAIN], machine.work, limit_s=100, clock=machine.clock)
    assert seconds == {DEFAULT: [1.0] * 5, PLAIN: [0.5, 0.5, 0.5, 2.5, 0.5]}
    assert fastest(seconds, DEFAULT) == (PLAIN, 2.0)
    assert machine.worked == [DEFAULT, PLAIN] * 6  # once to warm up, then five rounds


def test_two_rounds_are_run_however_slow_the_machine_is() -> None:
    machine = Machine(lambda layout: 60.0)
    time_layouts([DEFAULT, PLAIN], machine.work, limit_s=1, clock=machine.clock)
    assert machine.worked == [DEFAULT, PLAIN] * 3


@pytest.mark.parametrize(("seconds", "best"), [(1 / 1.13, PLAIN), (1.01 / WORTH, DEFAULT), (1.06, DEFAULT)])
def test_the_default_gives_way_to_what_is_clearly_faster(seconds: float, best: Layout) -> None:
    assert fastest({DEFAULT: [1.0, 1.0], PLAIN: [seconds, seconds]}, DEFAULT)[0] == best


def test_what_is_faster_in_one_round_and_slower_in_another_is_not_taken() -> None:
    assert fastest({DEFAULT: [3.0, 1.0], PLAIN: [1.0, 1.1]}, DEFAULT) == (DEFAULT, 1.0)


def test_the_memory_layout_is_found_first_and_then_the_batch() -> None:
    """.8 of the seconds without channels last, and half of those in batches of 16: 2.5 times the default."""
    machine = Machine(lambda layout: (1 if layout.channels_last else 0.8) * (0.5 if layout.batch_size == 16 else 1))
    best, gain = find_fastest(32, machine.work, limit_s=100, clock=machine.clock)
    assert best == Layout(False, 16)
    assert gain == pytest.approx(2.5)
    assert {each.batch_size for each in machine.worked} == {32, 16, 8}


def test_a_batch_of_one_has_no_halves() -> None:
    machine = Machine(lambda layout: 1.0)
    assert find_fastest(1, machine.work, limit_s=100, clock=machine.clock) == (Layout(True, 1), 1.0)


def test_work_puts_the_layout_on_the_sampler_and_back(tiny_pipeline: Any) -> None:
    sampler = Sampler(tiny_pipeline, RuntimeConfig(batch_size=4))
    embeddings = embed_prompts(tiny_pipeline, ["a nurse", ""], 2)
    captions = Captions(embeddings.rows([0]), [0] * 4, embeddings.rows([1]))
    work = work_of(sampler, captions, SamplingConfig(n_steps=9))
    kernel, calls = tiny_pipeline.unet.conv_in.weight, list[int]()
    tiny_pipeline.unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    work(Layout(False, 2))
    assert (kernel.is_contiguous(), calls) == (True, [4, 4, 4, 4])  # two batches of two, both halves, two steps
    work(Layout(True, 4))
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert calls[4:] == [8, 8]
