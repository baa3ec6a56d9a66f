"""Plain progress lines: how many, and what they say."""

import io

from flows.terminal.progress import PlainProgress, plain_line


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_says_rate_and_time_left() -> None:
    # 64 of 480 done, 40 of them in the last 10 s: 4 a second, 416 left: 104 s.
    assert plain_line("sample", 64, 480, done_here=40, seconds=10) == "sample 64/480, 4.0/s, 1:44 left"


def test_nothing_done_yet_has_no_rate() -> None:
    assert plain_line("sample", 64, 480, done_here=0, seconds=10) == "sample 64/480"


def test_lines_come_at_the_start_every_ten_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainProgress(stream, clock) as progress:
        for done in range(0, 25):
            progress("train", done, 24)
            clock.now += 1
    # One step a second: at 0 s, 10 s, 20 s, and the last step at 24 s.
    assert stream.getvalue().splitlines() == [
        "train 0/24",
        "train 10/24, 1.0/s, 0:14 left",
        "train 20/24, 1.0/s, 0:04 left",
        "train 24/24, 1.0/s, 0:00 left",
    ]


def test_resumed_work_counts_only_what_this_process_did() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock)
    progress("train", 100, 120)
    clock.now += 10
    progress("train", 110, 120)
    assert stream.getvalue().splitlines()[-1] == "train 110/120, 1.0/s, 0:10 left"


def test_another_label_starts_at_once() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock)
    progress("sample base", 0, 8)
    progress("sample aligned", 0, 8)
    assert stream.getvalue().splitlines() == ["sample base 0/8", "sample aligned 0/8"]


def test_stages_side_by_side_have_lines_of_their_own() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock)
    for done in range(0, 25):
        progress("train", done, 24)
        progress("sample-eval:base", 2 * done, 48)
        clock.now += 1
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if line.startswith("train")][1] == "train 10/24, 1.0/s, 0:14 left"
    assert [line for line in lines if line.startswith("sample")][1] == "sample-eval:base 20/48, 2.0/s, 0:14 left"
    assert len(lines) == 8
    progress("train", 0, 8)  # the next model's
    clock.now += 10
    progress("train", 5, 8)
    assert stream.getvalue().splitlines()[8:] == ["train 0/8", "train 5/8, 0.5/s, 0:06 left"]
