"""A reader in a process of its own: kill -9 costs a batch's time and no result; a deadly image costs itself."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing import current_process, get_context
from pathlib import Path

import numpy as np
import pytest
from face_classifiers import DEADLY, CornerClassifier, die_loading, keep_a_reader, load_nothing, thread_count

from popalign_core.attributes.classifier_process import IsolatedClassifier
from popalign_core.errors import ConfigError, MissingWeightsError, ResourceError


def pictures(*values: int) -> list[np.ndarray]:
    return [np.full((8, 8 + i, 3), value, np.uint8) for i, value in enumerate(values)]


def scores(classifier: IsolatedClassifier, *values: int) -> list[int]:
    return [round(reading.detector_score * 255) for reading in classifier.read(pictures(*values))]


def test_it_reads_as_the_reader_in_it_does_in_another_process() -> None:
    classifier = IsolatedClassifier(CornerClassifier)
    assert (classifier.name, classifier.version, classifier.axes) == ("corner", "1", CornerClassifier.axes)
    assert classifier.read(pictures(1, 2, 3), ["a", "b", "c"]) == CornerClassifier().read(pictures(1, 2, 3))
    assert classifier.read([]) == []
    assert classifier._ask(os.getpid) != os.getpid()


def test_kill_minus_9_in_the_middle_of_a_batch_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    classifier = IsolatedClassifier(partial(CornerClassifier, log=log, delay_s=1.0))
    victim = classifier._ask(os.getpid)

    def kill_once_it_reads() -> None:
        while not log.exists():
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_once_it_reads)
    killer.start()
    assert scores(classifier, 1, 2, 3) == [1, 2, 3]
    killer.join()
    assert classifier._ask(os.getpid) != victim
    begun = [line.split() for line in log.read_text().splitlines()]
    assert [int(n) for _, n in begun] == [3, 3]  # the batch again, whole, in the new process
    assert begun[0][0] == str(victim)
    assert begun[1][0] != str(victim)


def test_a_worker_process_ends_with_a_reader_in_its_hands() -> None:
    """multiprocessing waits for the processes of a process before it shuts its pools down: for ever, left alone."""
    worker = get_context("spawn").Process(target=keep_a_reader)
    worker.start()
    worker.join(timeout=60)
    hangs = worker.is_alive()
    worker.kill()
    assert not hangs
    assert worker.exitcode == 0


def test_a_daemon_is_told_that_it_may_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="with DASK_DISTRIBUTED__WORKER__DAEMON=False"):
        IsolatedClassifier(CornerClassifier)


def test_killed_between_batches_it_starts_again() -> None:
    classifier = IsolatedClassifier(CornerClassifier)
    for value in (4, 5):
        os.kill(classifier._ask(os.getpid), signal.SIGKILL)
        assert scores(classifier, value) == [value]


def test_a_deadly_image_is_dropped_with_a_reason_and_its_neighbours_are_read() -> None:
    classifier = IsolatedClassifier(CornerClassifier)
    readings = classifier.read(pictures(1, DEADLY, 3))
    assert [reading.problem for reading in readings] == [None, "reader_died", None]
    assert [reading.n_faces for reading in readings] == [1, 0, 1]
    assert scores(classifier, 7) == [7]


def test_a_process_that_dies_on_everything_ends_the_stage() -> None:
    classifier = IsolatedClassifier(CornerClassifier)
    with pytest.raises(ResourceError, match=r"corner@1 died on each of 2 image\(s\) .*; see whether memory ran out"):
        classifier.read(pictures(DEADLY, DEADLY))


def test_errors_of_loading_arrive_as_they_are() -> None:
    with pytest.raises(MissingWeightsError, match="no file at /nowhere; put one there"):
        IsolatedClassifier(load_nothing)
    with pytest.raises(ResourceError, match="died while it loaded"):
        IsolatedClassifier(die_loading)


def test_threads_are_those_that_were_asked_for() -> None:
    assert IsolatedClassifier(thread_count, n_threads=2).version == "2"


def test_the_process_ends_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from popalign_core.attributes.classifier_process import IsolatedClassifier\n"
        "from face_classifiers import CornerClassifier\n"
        "if __name__ == '__main__':\n"
        "    print(IsolatedClassifier(CornerClassifier)._ask(os.getpid), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    roots = [str(Path(__file__).parents[2] / "support"), str(Path(__file__).parents[3])]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(roots)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    child = int(done.stdout)
    for _ in range(500):
        if not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    pytest.fail(f"process {child} outlived its parent by 10 s")
