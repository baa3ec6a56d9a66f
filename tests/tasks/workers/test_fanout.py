"""The fan-out on real runners: the same results, each handed over once, whatever dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import shard_work
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from popalign_core.config import RuntimeConfig
from popalign_core.errors import ConfigError, MissingWeightsError, ResourceError
from tasks.workers import shard_worker
from tasks.workers.fanout import fan_out
from tasks.workers.shard_worker import claim_slot, worker_device

REPOSITORY = Path(__file__).resolve().parents[3]
CLUSTERS = [
    pytest.param(
        name,
        marks=(pytest.mark.slow, pytest.mark.skipif(not find_spec(f"prefect_{name}"), reason=f"popalign[{name}]")),
    )
    for name in ("ray", "dask")
]


def runtime(runner: str, n_workers: int = 2, **changes: Any) -> RuntimeConfig:
    return RuntimeConfig.model_validate({"runner": runner, "n_workers": n_workers, "device": "cpu", **changes})


class Handed(dict[int, Any]):
    """Results by shard, each taken once and in the caller's thread."""

    def __call__(self, number: int, result: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert number not in self, f"shard {number} came twice"
        self[number] = result


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


JOBS = {number: number + 1 for number in range(3, 11)}
SQUARES = {number: (number + 1) ** 2 for number in range(3, 11)}


@pytest.mark.parametrize(("runner", "n_workers"), [("inline", 1), ("threads", 2)])
def test_runners_of_this_process_hand_over_the_same_results(runner: str, n_workers: int) -> None:
    handed = Handed()
    fan_out(shard_work.square, JOBS, runtime(runner, n_workers), handed, stage="sample")
    assert {number: result[0] for number, result in handed.items()} == SQUARES
    assert {pid for _, (pid, _), _ in handed.values()} == {os.getpid()}


@pytest.mark.parametrize("runner", ["processes", *CLUSTERS])
def test_worker_processes_hand_over_the_same_results_from_inside_a_flow(runner: str) -> None:
    handed = Handed()

    @task
    def stage() -> None:
        fan_out(shard_work.square, JOBS, runtime(runner), handed, stage=f"{runner}:base")

    @flow
    def pipeline() -> None:
        stage()

    pipeline()
    assert {number: result[0] for number, result in handed.items()} == SQUARES
    loads = {load for _, load, _ in handed.values()}
    assert len(loads) <= 2, "a worker process does not live on between jobs"
    assert os.getpid() not in {pid for pid, _ in loads}
    assert {threads for _, _, threads in handed.values()} == {str(max(1, (os.cpu_count() or 1) // 2))}
    expected = {f"{runner}:base shard {number:05d}": "COMPLETED" for number in JOBS}
    wait_for(lambda: task_runs(f"{runner}:base shards") == expected, "the states of the task runs")


def task_runs(flow_run_name: str) -> dict[str, str]:
    with get_client(sync_client=True) as client:
        flow_runs = {run.id: run.name for run in client.read_flow_runs()}
        found = client.read_task_runs()
    return {
        run.name: run.state.type.value
        for run in found
        if run.flow_run_id and flow_runs[run.flow_run_id] == flow_run_name and run.state
    }


def test_no_more_than_two_jobs_a_worker_are_under_way(tmp_path: Path) -> None:
    handed = Handed()

    def take_time(number: int, result: int) -> None:
        time.sleep(0.1)
        assert len(list(tmp_path.glob("started-*"))) <= len(handed) + 4
        handed(number, result)

    jobs = {number: (number, str(tmp_path)) for number in range(8)}
    fan_out(shard_work.note_start, jobs, runtime("threads"), take_time, stage="sample")
    assert handed == {number: number for number in range(8)}


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("runner", ["processes", *CLUSTERS])
def test_the_job_of_a_killed_worker_is_redone_and_given_up_after_three(runner: str, tmp_path: Path) -> None:
    handed = Handed()
    n_deaths = {0: 0, 1: 1, 2: 0, 3: 9}
    jobs = {number: (number, str(tmp_path), n) for number, n in n_deaths.items()}
    reason = rf"^sample shard 3: the worker of runner '{runner}' died 3 times .*set runtime.batch_size below 32"
    with pytest.raises(ResourceError, match=reason) as info:
        fan_out(shard_work.die, jobs, runtime(runner), handed, stage="sample")
    assert info.value.exit_code == 8
    assert handed == {0: 0, 1: 1, 2: 4}
    starts = {number: (tmp_path / f"starts-{number}").stat().st_size for number in jobs}
    assert starts[1] >= 2
    # a pool's end takes the jobs that wait with it: the first of the three deaths may be such a one
    assert starts[3] in ((2, 3) if runner == "processes" else (3,))


def test_work_that_ends_its_process_is_an_error_not_a_hang() -> None:
    with pytest.raises(RuntimeError, match=r"the work of a shard called exit\(3\)"):
        fan_out(sys.exit, {0: 3}, runtime("threads"), Handed(), stage="sample")


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("runner", ["processes", *CLUSTERS])
def test_an_error_of_the_work_comes_as_it_is_and_at_once(runner: str, tmp_path: Path) -> None:
    handed = Handed()

    def take(number: int, result: int) -> None:
        handed(number, result)
        (tmp_path / f"handed-{number}").touch()

    jobs = {number: (number, str(tmp_path)) for number in range(3)}
    start = time.monotonic()
    with pytest.raises(MissingWeightsError, match=r"^no weights for shard 1$") as info:
        fan_out(shard_work.fail, jobs, runtime(runner, n_workers=3), take, stage="sample")
    assert info.value.exit_code == 4
    assert handed == {0: 0}
    assert time.monotonic() - start < 60, "waited for a shard that nobody wants"


DRIVER = """
import sys
import shard_work
from popalign_core.config import RuntimeConfig
from tasks.workers.fanout import fan_out

if __name__ == "__main__":
    runner, work, jobs = sys.argv[1], getattr(shard_work, sys.argv[2]), eval(sys.argv[3])
    runtime = RuntimeConfig(runner=runner, n_workers=2)
    fan_out(work, jobs, runtime, lambda number, result: print(number, len(result)), stage="sample")
"""


def drive(folder: Path, runner: str, work: str, jobs: object, **environment: str) -> "subprocess.Popen[str]":
    """A coordinator of its own."""
    script = folder / "driver.py"
    script.write_text(DRIVER)
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "support")])
    return subprocess.Popen(
        [sys.executable, str(script), runner, work, repr(jobs)],
        env=os.environ | {"PYTHONPATH": path, "PREFECT_HOME": str(folder / "home")} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("runner", ["processes", *CLUSTERS])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_coordinator(how: signal.Signals, runner: str, tmp_path: Path) -> None:
    marks = tmp_path / "working"
    marks.mkdir()
    process = drive(
        tmp_path, runner, "work_for_long", {0: str(marks), 1: str(marks)}, PREFECT_API_URL=PREFECT_API_URL.value()
    )
    try:
        wait_for(lambda: len(list(marks.iterdir())) == 2, "two workers at work")
        process.send_signal(how)
        process.communicate(timeout=90)
        pids = [int(mark.name) for mark in marks.iterdir()]
        wait_for(lambda: not any(map(is_running, pids)), "the end of the workers", timeout_s=15)
        assert process.returncode != 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_ends_all_at_once_without_a_server(tmp_path: Path) -> None:
    """The terminal sends it to the whole group: to the workers, and to the server that Prefect started itself."""
    process = drive(tmp_path, "processes", "work_for_long", {0: str(tmp_path)}, PREFECT_API_URL="")
    try:
        wait_for(lambda: any(path.name.isdigit() for path in tmp_path.iterdir()), "a worker at work", timeout_s=120)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["threads", "processes", *CLUSTERS])
def test_without_a_server_large_results_come_back_and_lie_nowhere(runner: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    process = drive(tmp_path, runner, "make_megabytes", {0: 0, 1: 1, 2: 2}, PREFECT_API_URL="")
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert sorted(printed.split("\n")) == ["", "0 20000000", "1 20000000", "2 20000000"]
    kept = sum(path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file())
    assert kept < 20_000_000, "Prefect kept results"


@pytest.mark.parametrize(("n_workers", "expected"), [(2, ["cuda:0", "cuda:1"]), (3, ["cuda:0", "cuda:0", "cuda:1"])])
def test_each_worker_takes_a_gpu_of_its_own_then_they_share(n_workers: int, expected: list[str]) -> None:
    handed, config = Handed(), runtime("threads", n_workers, device="cuda")
    fan_out(shard_work.choose_device, dict.fromkeys(range(n_workers), (config, 2)), config, handed, stage="sample")
    assert sorted(handed.values()) == expected


def test_a_named_device_and_a_single_gpu_are_taken_as_they_are() -> None:
    handed = Handed()
    jobs = {
        number: (runtime("threads", device=device), n_gpus)
        for number, (device, n_gpus) in enumerate([("cuda:1", 4), ("cpu", 4), ("auto", 1)])
    }
    fan_out(shard_work.choose_device, jobs, runtime("threads"), handed, stage="sample")
    assert handed == {0: "cuda:1", 1: "cpu", 2: "auto"}


def test_threads_load_for_themselves_or_once_a_device_and_another_wish_frees_the_former() -> None:
    config, loads = runtime("threads"), shard_work.loads
    own = dict.fromkeys(range(6), (config, "own", False))
    handed = Handed()
    try:
        fan_out(shard_work.load, own, config, handed, stage="sample")
        assert 1 <= len(loads) <= 2, "a thread loads once at most"
        assert len(shard_worker._loaded) == len(loads)
        loads.clear()
        shared = dict.fromkeys(range(6), (config, "shared", True))
        fan_out(shard_work.load, shared, config, Handed(), stage="sample")
        assert loads == ["shared on cpu"]
        assert [what[1] for what, _ in shard_worker._loaded.values()] == [("shared",)]
    finally:
        shard_worker.forget()
        loads.clear()
    assert shard_worker._loaded == {}


def test_who_is_no_worker_claims_nothing() -> None:
    assert worker_device(runtime("processes", device="cuda"), n_gpus=8) == "cuda"


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from tasks.workers.shard_worker import claim_slot\n"
    code += "print(claim_slot(Path(sys.argv[1])), flush=True); time.sleep(600)"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        assert claim_in_a_thread(tmp_path) == 1
    finally:
        other.kill()
        other.communicate()
    assert claim_in_a_thread(tmp_path) == 0


def claim_in_a_thread(folder: Path) -> int:
    slots: list[int] = []
    thread = threading.Thread(target=lambda: slots.append(claim_slot(folder)))
    thread.start()
    thread.join()
    return slots[0]


@pytest.mark.parametrize(("runner", "module"), [("ray", "prefect_ray"), ("dask", "prefect_dask")])
def test_a_runner_that_is_not_installed_is_named(runner: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"runner '{runner}' needs .* pip install popalign\[{runner}\]"):
        fan_out(shard_work.square, {0: 0}, runtime(runner), Handed(), stage="sample")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_workers": 4}, "n_workers is 4, but runner 'inline' has one"),
        ({"runner": "threads", "runner_address": "ray://head:10001"}, "is for the runners ray and dask, not 'threads'"),
        ({"runner": "threads", "n_workers": 2, "offload": True}, "threads would share it; set runner to processes"),
        ({"n_workers": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RuntimeConfig.model_validate(settings)
