"""Readers that a process of its own can load: this folder is on its path."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from popalign_core.attributes.classifier_interface import FaceReading
from popalign_core.attributes.classifier_process import IsolatedClassifier
from popalign_core.errors import MissingWeightsError

DEADLY = 13


class CornerClassifier:
    """Tells the value of a picture's first pixel as its score; dies as if out of memory at `DEADLY`."""

    name, version = "corner", "1"
    axes = {"gender": ("male", "female")}  # noqa: RUF012 (as the protocol has it)

    def __init__(self, dies: bool = True, log: Path | None = None, delay_s: float = 0.0) -> None:
        self._dies, self._log, self._delay_s = dies, log, delay_s

    def read(self, pictures: Any, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{os.getpid()} {len(pictures)}\n")
        time.sleep(self._delay_s)
        if self._dies and any(int(pixels[0, 0, 0]) == DEADLY for pixels in pictures):
            os.kill(os.getpid(), signal.SIGKILL)
        return [
            FaceReading(1, (0.0, 0.0, 8.0, 8.0), int(pixels[0, 0, 0]) / 255, {"gender": {"male": 1.0, "female": 0.0}})
            for pixels in pictures
        ]


def load_nothing() -> CornerClassifier:
    raise MissingWeightsError("no file at /nowhere; put one there")


def die_loading() -> CornerClassifier:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def thread_count() -> CornerClassifier:
    """A reader whose version is the number of torch's threads."""
    import torch

    classifier = CornerClassifier()
    classifier.version = str(torch.get_num_threads())
    return classifier


def seen_gpu(device: str) -> CornerClassifier:
    """A reader whose version says which device it was given, and which GPUs its process sees."""
    classifier = CornerClassifier()
    classifier.version = f"{device} of {os.environ.get('CUDA_VISIBLE_DEVICES')}"
    return classifier


kept: list[IsolatedClassifier] = []


def keep_a_reader() -> None:
    """What a worker of a pool does: it has the reader for all its life."""
    kept.append(IsolatedClassifier(CornerClassifier))
