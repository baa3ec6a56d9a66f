"""Protecting artifacts from garbage collection, for a run or for a command outside of one."""

import hashlib
from collections.abc import Iterable

from popalign_core.config import RuntimeConfig
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store

_DIGITS = 12


def reserve_run(refs: Iterable[ArtifactRef], runtime: RuntimeConfig, name: str) -> None:
    """Keep what a run that now starts will use or make."""
    open_store(runtime).reserve(name, refs)


def reserve_made(refs: Iterable[ArtifactRef], runtime: RuntimeConfig, command: str) -> None:
    """Keep what a command outside of any run will use or make, before it begins.

    The folder `runs/COMMAND-HASH` stands for the artifacts; the same ones again are the same folder, and who wants them
    collected deletes it.

    Args:
        refs: All artifacts it needs and makes.
        runtime: Which store.
        command: What makes them, such as "stage-train"; the beginning of the folder's name.
    """
    wanted = sorted(map(str, set(refs)))
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:_DIGITS]
    kept = [ArtifactRef(*ref.split("/", 1)) for ref in wanted]
    reserve_run(kept, runtime, f"{command.replace(':', '-')}-{digest}")
