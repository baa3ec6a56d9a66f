"""One process of a training that `accelerate launch` started: `python -m tasks.stages.train_worker JOB.json`."""

import json
import os
import sys
from pathlib import Path

from popalign_core.config import RuntimeConfig
from popalign_core.errors import PopAlignError
from storage.roots import write_atomic
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store, set_threads
from tasks.stages.round_inputs import TrainingRefs
from tasks.stages.train_inputs import run_training
from tasks.stages.train_launch import ERROR_FILE
from tasks.stages.train_view import TrainView


def main(job: Path) -> int:
    """Train as the job says; the exit code is the error's. What went wrong is left for the parent to read."""
    document = json.loads(job.read_text(encoding="utf-8"))
    view, runtime = TrainView.model_validate(document["view"]), RuntimeConfig.model_validate(document["runtime"])
    given = {name: ArtifactRef(**ref) for name, ref in document["refs"].items() if ref}
    refs = TrainingRefs(**given)
    is_first = os.environ.get("RANK", "0") == "0"

    def tell(step: int, total: int) -> None:
        if is_first:
            sys.stdout.write(f"step {step} of {total}\n")
            sys.stdout.flush()

    set_threads(runtime)
    try:
        run_training(
            open_store(runtime),
            refs,
            view,
            runtime,
            Path(document["work"]),
            tell,
            is_orphaned=lambda: not _is_alive(document["parent"]),
            log_folder=Path(document["log_folder"]),
        )
    except PopAlignError as error:
        if is_first:
            failure = json.dumps({"type": type(error).__name__, "message": str(error)})
            write_atomic(Path(document["work"]) / ERROR_FILE, failure.encode())
        return error.exit_code
    return 0


def _is_alive(pid: int) -> bool:
    """Whether the process that launched this one is there: if it was killed, the result is not needed."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # there, and somebody else's
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
