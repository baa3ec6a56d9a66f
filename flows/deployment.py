"""What `popalign deploy` sets up on a Prefect server: work pool, deployments, and how a run outlives its machine.

A flow run sends heartbeats. Of one that is lost with its worker or its machine, or that has crashed, none comes any
more; an automation then gives it back to the work pool, as the same flow run, and it finds in the store what it had
made. It looks for heartbeats alone, not for the state Crashed: on SQLite the server may lose a single event, or act on
it twice.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from popalign_core.errors import ServiceError
from tasks.prefect_tasks import TAG
from tasks.workers.prefect_server import check_server, server_errors

PROJECT = Path(__file__).with_name("prefect.yaml")
"""The deployments; of a checkout it is at the top too."""
POOL, POOL_TYPE = "popalign", "process"
LOST_AFTER_S = 150
"""Without a heartbeat, of which a flow run sends one every 30 s (PREFECT_FLOWS_HEARTBEAT_FREQUENCY in the pool)."""
AUTOMATION = "popalign: a lost run goes on"
_PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
_BETWEEN_TRIES_S = 1.0
_SIGNS = ("heartbeat", "Completed", "Failed", "Cancelling", "Cancelled", "Scheduled", "AwaitingRetry")
"""Events after which there is nothing to do: the run works, has ended as it should, or waits for a worker."""


def wait_for_server(timeout_s: float) -> None:
    """Wait until the server at PREFECT_API_URL answers.

    Raises:
        ServiceError: When it does not in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            check_server()
            return
        except ServiceError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_BETWEEN_TRIES_S)


def make_deployments(say: Callable[[str], None]) -> None:
    """Make the work pool, the deployments and the automation; what is there already is brought up to date.

    Args:
        say: Told what is made.

    Raises:
        ServiceError: When the server does not answer, or refuses.
    """
    with server_errors():
        if _make_pool():
            say(f"work pool {POOL} ({POOL_TYPE})")
        _run_prefect("deploy", "--all", "--prefect-file", str(PROJECT))
        say(f"deployments of {PROJECT}")
        _make_automation()
        say(f"automation {AUTOMATION!r}")


def _make_pool() -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            _run_prefect("work-pool", "create", POOL, "--type", POOL_TYPE)
            return True
    return False


def _make_automation() -> None:
    """Make the automation, or bring the one of its name up to date."""
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat", "prefect.flow-run.Pending"},
        expect={f"prefect.flow-run.{sign}" for sign in _SIGNS},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification(
            {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
        ),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=LOST_AFTER_S),
    )
    said = f"no heartbeat for {LOST_AFTER_S} s: it resumes from what the store holds"
    again = ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message=said)
    automation = Automation(
        name=AUTOMATION, trigger=trigger, actions=[again], description="Set up by `popalign deploy`."
    )
    try:
        known: Any = Automation.read(name=automation.name)
        automation.id = known.id
    except ValueError:
        automation.create()
    else:
        automation.update()


def _run_prefect(*words: str) -> None:
    done = subprocess.run([*_PREFECT, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ServiceError(f"`prefect {' '.join(words)}` failed: {said[-1] if said else done.returncode}")
