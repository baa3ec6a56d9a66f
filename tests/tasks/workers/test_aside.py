"""Stages in processes of their own: what they make, how they fail, and what becomes of them on SIGTERM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aside_stages import happen

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError, ResourceError
from tasks.common.stage_object import Request, open_store
from tasks.workers.aside import make_aside, make_here_or_aside

SCRIPT = """
import sys, threading
from aside_stages import happen
from popalign_core.config import RuntimeConfig, PipelineConfig, Axis
from popalign_core.config.presets import preset
from tasks.workers.aside import ended_by_sigterm, make_aside

def main():
    runtime = RuntimeConfig(root=sys.argv[1], n_parallel=2)
    ask = lambda kind: happen.request(preset("smoke"), kind=kind)
    def aside(kind):
        make_aside(ask(kind), runtime, lambda *done: None)
    with ended_by_sigterm():
        threading.Thread(target=aside, args=("waits",), daemon=True).start()
        aside("saves")

if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeConfig:
    return RuntimeConfig(root=str(tmp_path / "store"), n_parallel=2)


def ask(config: PipelineConfig, runtime: RuntimeConfig, kind: str) -> Request[object]:
    open_store(runtime)
    request = happen.request(config, kind=kind)
    assert isinstance(request, Request)
    return request


def test_the_artifact_and_the_progress_come_from_another_process(
    tiny_config: PipelineConfig, runtime: RuntimeConfig
) -> None:
    seen = list[tuple[int, int]]()
    request = ask(tiny_config, runtime, "works")
    ref = make_here_or_aside(request, runtime, lambda *done: seen.append(done))
    assert open_store(runtime).is_published(ref)
    assert seen == [(1, 2), (2, 2)]
    assert int((Path(runtime.root) / "works.pid").read_text()) != os.getpid()
    # what is there needs no process, nor does a run whose stages come one by one
    assert make_here_or_aside(request, runtime, lambda *done: seen.append(done)) == ref
    assert len(seen) == 2
    alone = runtime.model_copy(update={"n_parallel": 1, "root": f"{runtime.root}-alone"})
    make_here_or_aside(ask(tiny_config, alone, "works"), alone, lambda *done: None)
    assert int((Path(alone.root) / "works.pid").read_text()) == os.getpid()


def test_errors_travel_and_a_death_is_told(tiny_config: PipelineConfig, runtime: RuntimeConfig) -> None:
    with pytest.raises(InputError, match="no image") as caught:
        make_aside(ask(tiny_config, runtime, "fails"), runtime, lambda *done: None)
    assert str(caught.value.stage).startswith("happen/")
    with pytest.raises(ZeroDivisionError, match="a bug") as broken:
        make_aside(ask(tiny_config, runtime, "breaks"), runtime, lambda *done: None)
    assert "aside_stages.py" in broken.value.__notes__[0]
    with pytest.raises(ResourceError, match="stage happen died") as dead:
        make_aside(ask(tiny_config, runtime, "dies"), runtime, lambda *done: None)
    assert dead.value.may_pass


def _wait_for(path: Path, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_stage_behind_and_lets_a_training_save(
    tmp_path: Path, sign: signal.Signals
) -> None:
    script, root = tmp_path / "script.py", tmp_path / "store"
    script.write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script), str(root)], env=env, stderr=subprocess.PIPE) as process:
        for kind in ("waits", "saves"):
            _wait_for(root / f"{kind}.pid")
        ids = [int((root / f"{kind}.pid").read_text()) for kind in ("waits", "saves")]
        process.send_signal(sign)
        _, said = process.communicate(timeout=60)
    if sign == signal.SIGTERM:
        assert b"PreemptedError: SIGTERM: finished work is kept; the same command resumes" in said
        assert (root / "saved").exists()
    deadline = time.monotonic() + 20
    while any(map(_is_alive, ids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_is_alive, ids))
