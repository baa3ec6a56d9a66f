"""Whether all that a run needs is there, before the first image: everything that is missing, at once."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from flows.plan.steps import Step
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import PopAlignError, StoreError
from popalign_core.models.weight_sizes import TrainingSize, training_size
from tasks.common.needs import Need

PIXEL_BYTES = 2.0
"""A pixel of an image as PNG; photographs take 1.3 to 1.9, and their latents .25."""
_GIB = 2**30


def list_needs(steps: Iterable[Step], config: PipelineConfig, runtime: RuntimeConfig) -> list[Need]:
    """What some steps need, each thing once, in their order.

    Args:
        steps: Which.
        config: Of the run; a step with its own has that.
        runtime: Of this machine.
    """
    found = dict[str, Need]()
    for step in steps:
        for need in step.stage.needs(step.config or config, runtime):
            found.setdefault(need.what, need)
    return list(found.values())


def find_problems(needs: Iterable[Need]) -> Iterator[PopAlignError]:
    """Of each need that is not there and must be, the error that says how to get it."""
    for need in needs:
        if not need.is_optional and (problem := look_for(need)) is not None:
            yield problem


def look_for(need: Need) -> PopAlignError | None:
    """The error that says how to get what is needed; None where it is there."""
    try:
        need.find()
    except PopAlignError as error:
        return error
    return None


def refuse(problems: Sequence[PopAlignError]) -> None:
    """Raise one error for all problems, each text once; nothing where there is none.

    Raises:
        PopAlignError: Of the kind of the first.
    """
    by_text = {str(problem): problem for problem in problems}
    if not by_text:
        return
    first, *others = by_text.values()
    if not others:
        raise first
    texts = "".join(f"\n- {text}" for text in by_text)
    raise type(first)(f"{len(by_text)} items are missing or wrong; nothing was run:{texts}")


def check_disk(n_images: int, config: PipelineConfig, runtime: RuntimeConfig, trained_bytes: float = 0.0) -> None:
    """Refuse to sample more images, or to train more, than the disk of a local store holds.

    Args:
        n_images: To be sampled.
        config: Says their size.
        runtime: Says where the store is.
        trained_bytes: What trainings take: artifacts, checkpoints, the model in the run's folder.

    Raises:
        StoreError: With both figures.
    """
    if "://" in runtime.root:
        return
    needed = n_images * config.sampling.width * config.sampling.height * PIXEL_BYTES
    with suppress(OSError):
        free = free_bytes(Path(runtime.root))
        if needed + trained_bytes > free:
            training = f" and training {trained_bytes / _GIB:.1f} GiB" if trained_bytes else ""
            raise StoreError(
                f"about {n_images} images of {config.sampling.width} x {config.sampling.height} px take "
                f"{needed / _GIB:.1f} GiB{training}, and {runtime.root} has {free / _GIB:.1f} GiB left; make room, "
                "or give another root"
            )


def size_of_training(config: PipelineConfig, runtime: RuntimeConfig) -> TrainingSize:
    """What a training takes on a disk; nothing where the model's files cannot be read, which is told elsewhere."""
    try:
        return training_size(config.model, config.training, runtime.keep_checkpoints)
    except (PopAlignError, OSError, ValueError, LookupError, TypeError):
        return TrainingSize(0.0, 0.0, 0.0, 0.0)


def free_bytes(path: Path) -> int:
    """Room on the disk that a path is on, or will be."""
    return shutil.disk_usage(nearest_folder(path)).free


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the innermost one around it that is there already."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
