"""Where base models lay when something was trained from them: `<root>/models/HASH.json`, beside the artifacts.

Artifacts say by hash what they were trained from, and hold no path. These records are for who has an artifact alone.
They are hints: whoever reads one hashes what lies there.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from popalign_core.documents import read_json
from storage.roots import Root

MODELS = "models"
_MOST = 8
"""Places of one model that are remembered; the oldest go first."""


class ModelRecords:
    """The records of one store."""

    def __init__(self, root: Root) -> None:
        self._root = root

    def add(self, model_hash: str, document: Mapping[str, Any]) -> None:
        """Remember what a model is called, and where it lies.

        Args:
            model_hash: Of its weights.
            document: Its configuration; JSON types only.

        Raises:
            StoreError: When the store cannot be written.
        """
        known = self.find(model_hash)
        if known[:1] == [document]:
            return
        models = [dict(document), *(each for each in known if each != document)][:_MOST]
        text = json.dumps({"hash": model_hash, "models": models}, indent=1, sort_keys=True) + "\n"
        self._root.write(_path(model_hash), text.encode())

    def find(self, model_hash: str) -> list[dict[str, Any]]:
        """Configurations that had these weights, the newest first; none where nothing whole is remembered.

        Raises:
            StoreError: When the store cannot be read.
        """
        data = self._root.read(_path(model_hash))
        try:
            models = [] if data is None else read_json(data)["models"]
            return [dict(each) for each in models]
        except (ValueError, KeyError, TypeError):
            return []


def _path(model_hash: str) -> str:
    """A hub id's hash has a slash in it."""
    return f"{MODELS}/{hashlib.sha256(model_hash.encode()).hexdigest()[:32]}.json"
