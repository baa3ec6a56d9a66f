"""The command where another project's `flows`, `tasks` or `storage` stands in front of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.deployments.steps.core import run_steps

from popalign_core.command import check_packages

REPOSITORY = Path(__file__).resolve().parents[2]
START = "from popalign_core.command import start; start()"


def run_beside(folder: Path, code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Some Python with a folder in front of ours on the path."""
    path = os.pathsep.join([str(folder), str(REPOSITORY)])
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *words],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def foreign(folder: Path, name: str, kind: str = "package") -> Path:
    """A package, a folder without __init__.py or a module of another project, which says so when it is run."""
    body = "print('FOREIGN CODE RUNS')\n"
    place = folder / name
    if kind == "module":
        place = place.with_suffix(".py")
        place.write_text(body)
    else:
        place.mkdir()
        (place / ("__init__.py" if kind == "package" else "cli.py")).write_text(body)
    return place


@pytest.mark.parametrize(
    ("name", "kind"), [("flows", "package"), ("tasks", "package"), ("storage", "package"), ("tasks", "module")]
)
def test_a_package_of_another_project_is_named_and_not_run(tmp_path: Path, name: str, kind: str) -> None:
    place = foreign(tmp_path, name, kind)
    done = run_beside(tmp_path, START, "--help")
    assert (done.returncode, done.stdout) == (2, "")
    ours = f"is not PopAlign's, which is at {REPOSITORY / name}; take {tmp_path} off PYTHONPATH"
    assert done.stderr.startswith(f"popalign: the package `{name}` at {place} {ours}")


@pytest.mark.parametrize("module", ["flows.pipeline", "flows.cli", "tasks.workers.shard_worker"])
def test_entrypoints_of_workers_name_it_too(tmp_path: Path, module: str) -> None:
    place = foreign(tmp_path, "storage")
    done = run_beside(tmp_path, f"import {module}")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"ConfigError: the package `storage` at {place} is not PopAlign's" in done.stderr


def test_a_folder_of_that_name_that_python_would_not_take_is_no_fault(tmp_path: Path) -> None:
    """Without __init__.py it comes after ours, wherever it stands on the path."""
    foreign(tmp_path, "tasks", "folder")
    done = run_beside(tmp_path, START, "--help")
    assert (done.returncode, "FOREIGN" in done.stdout) == (0, False), done.stderr


async def _pull() -> None:
    project = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
    await run_steps(project["pull"])


def test_deployments_look_before_a_flow_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    called = []
    monkeypatch.setattr("popalign_core.command.find_spec", lambda name: called.append(name) or _spec(name))
    asyncio.run(_pull())
    assert called == ["flows", "tasks", "storage"]


def _spec(name: str) -> object:
    return sys.modules["importlib.util"].find_spec(name)


def test_ours_are_ours() -> None:
    check_packages()
