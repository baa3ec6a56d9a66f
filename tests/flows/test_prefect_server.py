"""The uses the project was asked for, on a real Prefect server and worker, both started and stopped here."""

import json
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from prefect_station import (
    COMMAND_TIMEOUT_S,
    REPOSITORY,
    WORKER,
    Station,
    deployed_station,
    environment,
    running,
)

from popalign_core.portraits import weights_folder

APPEAR_TIMEOUT_S = 180
"""The scheduler looks every few seconds at deployments that are new, and plans many runs ahead."""


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    with (
        deployed_station(tmp_path) as station,
        running(WORKER, station.folder, station.env, station.folder / "worker.log"),
    ):
        yield station


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_pipeline_rerun_of_a_stage_and_new_checkpoints(station: Station) -> None:
    schedule = station.prefect("deployment", "schedule", "ls", "popalign-evaluate/new-checkpoints")
    assert "17 * * * *" in schedule
    # Or else it may come due while this runs, with the full preset.
    station.prefect("deployment", "schedule", "pause", "--all")

    station.run("popalign/full-pipeline")
    run = station.folder / "artifacts" / "runs" / "smoke"
    rows = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert {row["system"] for row in rows} >= {"base", "aligned"}
    assert len(pd.read_parquet(run / "metrics.parquet")) == len(rows)
    assert (run / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert (run / "model" / "model_index.json").is_file()

    before = station.artifacts()
    station.run("popalign-stage/rerun", node="report")
    assert station.artifacts() == before
    station.run("popalign-stage/rerun", node="report", force=True)
    assert {name.split("/")[0] for name in station.artifacts() - before} == {"report"}

    board = station.folder / "artifacts" / "leaderboard.parquet"
    station.run("popalign-evaluate/new-checkpoints")
    first, evaluated = board.read_bytes(), station.artifacts()
    assert pd.read_parquet(board)["checkpoint"].nunique() == 1
    station.run("popalign-evaluate/new-checkpoints")
    assert board.read_bytes() == first
    assert station.artifacts() == evaluated


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_schedule_makes_runs_and_the_second_finds_nothing_new(station: Station, tmp_path: Path) -> None:
    """The deployment of prefect.yaml on a small preset, every minute in place of every hour."""
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(weights_folder() / "pipeline", checkpoints / "first")
    project = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
    (deployment,) = (each for each in project["deployments"] if each["name"] == "new-checkpoints")
    deployment["parameters"] |= {"preset": "smoke", "watch": str(checkpoints)}
    deployment["schedules"] = [{"interval": 60}]
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump(project), encoding="utf-8")
    station.prefect("deploy", "--prefect-file", str(file), "--name", "new-checkpoints")

    deadline = time.monotonic() + APPEAR_TIMEOUT_S
    while not (appeared := station.scheduled_runs("new-checkpoints")) and time.monotonic() < deadline:
        time.sleep(2)
    assert appeared, f"no scheduled run appeared within {APPEAR_TIMEOUT_S} s\n{station.said()}"

    board = station.folder / "artifacts" / "leaderboard.parquet"
    station.wait_for_completed("new-checkpoints", 1, COMMAND_TIMEOUT_S)
    first, evaluated = board.read_bytes(), station.artifacts()
    assert pd.read_parquet(board)["checkpoint"].nunique() == 1
    assert {name.split("/")[0] for name in evaluated} >= {"sample", "attributes", "evaluate"}
    station.wait_for_completed("new-checkpoints", 2, COMMAND_TIMEOUT_S)
    assert board.read_bytes() == first
    assert station.artifacts() == evaluated


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_lines_of_the_docs_work_as_they_stand(tmp_path: Path) -> None:
    """Pasted into a shell, in a folder with the environment: a server, a worker and a run that has completed."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 4200)) == 0:
            pytest.skip("something answers at Prefect's own port")
    text = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Prefect\n\n```\n(.*?)```", text, re.S)
    env = {name: value for name, value in environment(tmp_path / "prefect", 4200).items() if name != "PREFECT_API_URL"}
    (tmp_path / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    shell = ("bash", "--norc", "-s")
    with running(shell, tmp_path, env, tmp_path / "shell.log", block + "kill %1 %2\n") as process:
        process.wait(timeout=COMMAND_TIMEOUT_S)
    said = (tmp_path / "shell.log").read_text(errors="replace")
    assert (tmp_path / "artifacts" / "runs" / "smoke" / "report.html").is_file(), said
    assert "Completed" in said
    assert "automation 'popalign: a lost run goes on'" in said
