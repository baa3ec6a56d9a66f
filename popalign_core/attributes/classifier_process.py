"""A classifier in a process of its own: its frameworks, its memory and its crashes are not the pipeline's.

DeepFace and its detectors bring runtimes that crash on bad luck, fight over threads, and hold the GPU's memory for as
long as their process lives. Here they live in one spawned process, which ends with the classifier and is started again
when it dies. Killing it costs one batch's time and no result.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.util import Finalize
from typing import Any, TypeVar
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from popalign_core.attributes.classifier_interface import AttributeClassifier, FaceReading, Images, unreadable
from popalign_core.errors import ConfigError, ResourceError
from popalign_core.models.quiet import be_quiet

CLASSIFIER_DIED = "reader_died"
"""Drop reason: the process died whenever it looked at this image."""

R = TypeVar("R")
_N_TRIES = 2
_here: dict[str, AttributeClassifier] = {}


class IsolatedClassifier:
    """An attribute classifier that another process runs; attributes as those of the classifier in it."""

    def __init__(self, load: Callable[[], AttributeClassifier], n_threads: int = 0, gpu: int | None = None) -> None:
        """Start the process and load the classifier in it.

        Args:
            load: Makes the classifier; travels to the process, so it must be picklable.
            n_threads: Of torch there; 0 leaves its default.
            gpu: Of those that this process sees, the only one that the other sees; None for all.

        Raises:
            PopAlignError: Whatever `load` raises.
            ConfigError: When this process is a daemon, which may start none.
            ResourceError: When the process dies while it loads.
        """
        if current_process().daemon:
            raise ConfigError(
                "an attribute classifier works in a process of its own, which this one, a daemon, may not start; "
                "start Dask's workers with DASK_DISTRIBUTED__WORKER__DAEMON=False"
            )
        self._load, self._n_threads, self._gpu = load, n_threads, gpu
        self._pool: ProcessPoolExecutor | None = None
        try:
            self.name, self.version, self.axes = self._ask(_describe)
        except BrokenProcessPool as error:
            raise ResourceError(
                "the process of the attribute classifier died while it loaded its models; see whether memory ran out"
            ).passing() from error

    def read(self, images: Images, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """Read a batch; when the process dies, again in a new one, and then image by image.

        Raises:
            ResourceError: When it dies on every image of the batch.
        """
        readings = self._read(list(images), image_ids)
        if readings is None:
            alone = [self._read([one], image_ids[i : i + 1], 1) for i, one in enumerate(images)]
            if not any(alone):
                raise ResourceError(
                    f"the process of the attribute classifier {self.name}@{self.version} died on each of {len(alone)} "
                    "image(s) and in every new process; see whether memory ran out, or lower runtime.batch_size"
                ).passing()
            readings = [one[0] if one else unreadable(CLASSIFIER_DIED) for one in alone]
        return readings

    def _read(
        self, images: list[NDArray[np.uint8]], image_ids: Sequence[str], n_tries: int = _N_TRIES
    ) -> list[FaceReading] | None:
        """None when the process dies every time."""
        for _ in range(n_tries):
            try:
                return self._ask(_read, images, list(image_ids))
            except BrokenProcessPool:
                continue
        return None

    def _ask(self, call: Callable[..., R], *arguments: Any) -> R:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (self._n_threads, self._gpu))
            # A process that multiprocessing started waits at its end for its own ones before any pool is shut down;
            # at priority 10 the queues to them close.
            Finalize(None, _shut_down, (ref(self._pool),), exitpriority=11)
            self._pool.submit(_open, self._load).result()
        try:
            return self._pool.submit(call, *arguments).result()
        except BrokenProcessPool:
            self._pool.shutdown(wait=False)
            self._pool = None
            raise


def _shut_down(pool: "ref[ProcessPoolExecutor]") -> None:
    if there := pool():
        there.shutdown()


def _begin(n_threads: int, gpu: int | None) -> None:
    """In the process: what must be said before the frameworks are imported, and an end with the parent's."""
    be_quiet()
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # some detectors run on TensorFlow where there is one
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if n_threads:
        os.environ["OMP_NUM_THREADS"] = str(n_threads)
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)
    # a pool's process waits for work for ever, even when its parent was killed
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _open(load: Callable[[], AttributeClassifier]) -> None:
    _here["classifier"] = load()


def _describe() -> tuple[str, str, dict[str, tuple[str, ...]]]:
    classifier = _here["classifier"]
    return classifier.name, classifier.version, classifier.axes


def _read(images: list[NDArray[np.uint8]], image_ids: list[str]) -> list[FaceReading]:
    return _here["classifier"].read(images, image_ids)
