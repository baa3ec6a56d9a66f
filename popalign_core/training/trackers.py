"""TensorBoard and W&B."""

from pathlib import Path
from typing import Any


class Trackers:
    """Whatever Accelerate was told to log with; without any, nothing is done."""

    def __init__(self, accelerator: Any, start: int) -> None:
        """Begin a run's log; `start` is the number of steps that are done already."""
        self._accelerator = accelerator
        if accelerator.log_with:
            folder = str(accelerator.project_dir)
            # after a resume the steps since the checkpoint come again: the old ones are dropped
            options = {"tensorboard": {"purge_step": start + 1}, "wandb": {"dir": folder, "name": Path(folder).name}}
            accelerator.init_trackers("popalign", init_kwargs=options)

    def log(self, values: dict[str, float], step: int) -> None:
        """The terms of a step."""
        if self._accelerator.log_with:
            self._accelerator.log(values, step=step)

    def finish(self) -> None:
        """Write what is not written yet."""
        if self._accelerator.log_with:
            self._accelerator.end_training()
