"""A stage for processes of their own, in a module that they can import."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError, PreemptedError
from popalign_core.training.preemption import watch_preemption
from storage.store import ArtifactRef, Build
from tasks.common.stage_object import Inputs, Progress, Stage, View

KINDS = ("works", "fails", "breaks", "dies", "saves", "waits")


class KindView(View):
    """What shall happen."""

    kind: str

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, kind: str) -> Self:
        """Of one request."""
        return cls(kind=kind)

    def hashed(self) -> dict[str, Any]:
        """All of it."""
        return {"kind": self.kind}


def _fill(view: KindView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    on_progress(1, 2)
    Path(runtime.root, f"{view.kind}.pid").write_text(str(os.getpid()))
    if view.kind == "fails":
        raise InputError("no image")
    if view.kind == "breaks":
        raise ZeroDivisionError("a bug")
    if view.kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if view.kind == "waits":
        time.sleep(600)
    if view.kind == "saves":
        with watch_preemption() as preemption:
            while not preemption.requested:
                time.sleep(0.01)
        Path(runtime.root, "saved").touch()
        raise PreemptedError("saved")
    build.write_file("content.json", view.kind.encode())
    on_progress(2, 2)


happen = Stage("happen", "1", KindView.of, _fill)
