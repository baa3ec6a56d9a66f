"""Training checkpoints: trained weights, optimiser, log and step in one file, written whole; the newest are kept."""

import hashlib
import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popalign_core.errors import InputError, StoreError, TrainingError

LogRow = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a resume needs. Random draws need nothing here: each step makes its generator from (seed, step).

    Attributes:
        step: Optimiser steps done.
        weights: Trained parameters by name, float32.
        optimizer: The optimiser's state dict.
        scaler: The gradient scaler's, for float16; else empty.
        ema: The moving mean of the weights, by name; empty without one.
        running: Fields of `objective.Running`.
        log: training_log rows so far.
        fingerprint: Configuration, data and base weights this belongs to.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    ema: dict[str, Tensor]
    running: dict[str, Any]
    log: list[LogRow]
    fingerprint: str

    def final_weights(self) -> dict[str, Tensor]:
        """What the trained model gets: the moving mean where there is one."""
        return self.ema or self.weights


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"checkpoint-{step:07d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 1) -> None:
    """Write beside, rename, then delete all but the newest `keep`: a kill at any moment leaves a whole newest one.

    Raises:
        StoreError: When it cannot be written, the disk being full for example; those before are kept.
    """
    path = checkpoint_path(folder, checkpoint.step)
    partial = path.with_suffix(".partial")
    fields = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(fields, file)
            file.flush()
            os.fsync(file.fileno())
        _digest_path(path).write_text(_digest(partial), encoding="ascii")
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch hides what the file told it
        if not isinstance(cause, OSError):
            raise
        partial.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write checkpoint {path}: {cause}; free some space or let this user write there, then run the same "
            "command again: it resumes from the previous checkpoint"
        ) from error
    for old in list_checkpoints(folder)[keep:]:
        old.unlink()
    lonely = (digest for digest in folder.glob("checkpoint-*.sha256") if not digest.with_suffix(".pt").exists())
    for torn in (*folder.glob("checkpoint-*.partial"), *lonely):
        torn.unlink()


def load_checkpoint(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The folder's newest whole checkpoint, or None when there is none.

    Raises:
        InputError: When it belongs to another configuration, other data or another base.
        TrainingError: When there are checkpoints and every one is damaged.
    """
    damages = []
    for path in list_checkpoints(folder):
        try:
            checkpoint = _read(path)
        except Exception as error:  # noqa: BLE001 - a flipped bit may end in any error of zipfile, of pickle and of torch
            damages.append(f"{path} ({_first_line(error)})")
            continue
        if damages:
            _log.warning("checkpoint %s is damaged; resuming from %s", ", ".join(damages), path.name)
        if checkpoint.fingerprint != fingerprint:
            raise InputError(
                f"{path} belongs to another configuration or other data; give an empty folder, or delete it"
            )
        return checkpoint
    if damages:
        raise TrainingError(f"checkpoint {', '.join(damages)} is damaged; delete it to train from the start")
    return None


def _read(path: Path) -> Checkpoint:
    """A whole checkpoint by the digest beside it; without one, by the checksums in its zip archive.

    torch compares none, and an archive whose directory has a flipped bit may read as other numbers.

    Raises:
        Exception: Whatever the damage leads to.
    """
    digest = _digest_path(path)
    if digest.is_file():
        if digest.read_bytes().decode() != _digest(path):
            raise ValueError("does not match its checksum")
    else:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
    return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
