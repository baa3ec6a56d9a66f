"""A model folder whose files are partly links to those of another model, and the note in it that says of which one."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from popalign_core.config import ModelConfig
from popalign_core.documents import read_toml
from popalign_core.errors import MissingWeightsError
from popalign_core.models.model_sources import pipeline_source
from popalign_core.sources import how_to_get

BASE_NOTE = "base.toml"
"""No file that `model_hash` looks at: the same model is the same, wherever its base lies."""

Place = Callable[[Path, Path], None]
"""Puts a file at a new path: as a link, or as a copy."""


@dataclass(frozen=True)
class BaseNote:
    """Whose files the links of a folder lead to.

    Attributes:
        model: The base model.
        model_hash: Of its weights.
        trained: Key of the training whose denoiser is in the folder.
    """

    model: ModelConfig
    model_hash: str
    trained: str

    def to_toml(self) -> str:
        """The text of the note."""
        settings = self.model.model_dump(mode="json", exclude_defaults=True, exclude={"dtype", "storage"})
        return "\n".join(
            [
                "# Files of this folder are links to those of this model. `popalign export model` writes one without.",
                f"trained = {json.dumps(self.trained)}",
                f"hash = {json.dumps(self.model_hash)}",
                "[model]",
                # a model that is all defaults has its name in the note all the same
                *(f"{name} = {_as_toml(value)}" for name, value in ({"name": self.model.name} | settings).items()),
                "",
            ]
        )


def _as_toml(value: Any) -> str:
    """Text and numbers are as in JSON; the tables of several LoRAs are not."""
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {_as_toml(each)}' for name, each in value.items())} }}"
    return json.dumps(value)


def read_note(folder: Path) -> BaseNote | None:
    """The note of a folder; None where there is none that can be read."""
    try:
        document = read_toml((folder / BASE_NOTE).read_text(encoding="utf-8"))
        return BaseNote(ModelConfig.model_validate(document["model"]), document["hash"], document["trained"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def check_links(folder: Path) -> None:
    """Refuse a folder in which a link leads nowhere: what reads it would take the file for one that never was.

    Raises:
        MissingWeightsError: Naming the link, what it led to, and how to get that.
    """
    broken = next((path for path in sorted(folder.rglob("*")) if path.is_symlink() and not path.exists()), None)
    if broken is None:
        return
    problem, note = f"{broken} is a link to {os.readlink(broken)}, which is gone", read_note(folder)
    if note is None:
        raise MissingWeightsError(f"{problem}; put it back, or get the model again")
    public = pipeline_source(note.model)
    fix = how_to_get(public) if public else "put it back, or run again with model.name where it is now"
    raise MissingWeightsError(f"{problem}: it is of the base model {note.model.name} ({note.model_hash:.80}); {fix}")


def link_file(source: Path, target: Path) -> None:
    """A symbolic link to a file itself, not to a link: a hub cache's snapshot is links too, and may be deleted."""
    target.symlink_to(Path(os.path.realpath(source)))


def share_file(source: Path, target: Path) -> None:
    """One more name for a file; where the disk knows none, or it is another disk, a copy."""
    try:
        os.link(source, target)
    except OSError:
        copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """The bytes alone: who may read the copy is not up to the original."""
    import shutil

    shutil.copyfile(source, target)
