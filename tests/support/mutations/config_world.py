"""Whole configurations, one for each preset, and reading them."""

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

from leaves import Leaf, leaves

from mutations.editing import put
from mutations.judging import Taker, popalign
from mutations.toml_writing import Spelling
from popalign_core.config import PipelineConfig, load_config
from popalign_core.config.presets import PRESETS, preset

WRONG = 2
"""The exit code for configurations."""
COMMANDED = ("smoke", "portraits")
"""Presets whose weights are there, so that the command line can plan them."""
Document = dict[str, Any]


class ConfigWorld:
    """A whole configuration for each preset, with what presets leave out."""

    def __init__(self, root: Path) -> None:
        self.configs = {name: preset(name) for name in PRESETS}
        self._documents = {name: _whole(config) for name, config in self.configs.items()}
        self._takers: dict[str, Taker] = {}
        for name, document in self._documents.items():
            file = put(root / f"{name}.toml", Spelling(Random(0)).write(document))
            plan = _plan if name in COMMANDED else None
            self._takers[name] = Taker(file, lambda given, scratch: load_config(given), plan)

    def draw(self, random: Random) -> tuple[str, Document, Taker]:
        """A preset's name, its whole document, and who takes it."""
        name = random.choice(list(self.configs))
        return name, copy.deepcopy(self._documents[name]), self._takers[name]


def _plan(file: Path, scratch: Path) -> str:
    """What is planned, key by key."""
    return popalign("plan", "--config", str(file), "--root", str(scratch / "store"))


def _whole(config: PipelineConfig) -> Document:
    document: Document = json.loads(json.dumps(config.model_dump(exclude_none=True)))
    return document


def paths_of(config: PipelineConfig, document: Document) -> list[Leaf]:
    """The leaves that the document has."""
    return [path for path in leaves(config) if get(document, path) is not None]


def get(document: Any, path: Leaf) -> Any:
    for step in path:
        try:
            document = document[step]
        except (KeyError, IndexError):
            return None
    return document


def set_at(document: Document, path: Leaf, value: Any) -> Document:
    get(document, path[:-1])[path[-1]] = value
    return document


def write(folder: Path, document: Document, random: Random) -> Path:
    """As TOML or JSON."""
    if random.random() < 0.3:
        return put(folder / "popalign.json", json.dumps(document))
    return put(folder / "popalign.toml", Spelling(random).write(document))
