"""What there is to read in a store: each folder of `runs/` with its kind, its state and its verdict."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from popalign_core.documents import read_json
from popalign_core.errors import StoreError
from popalign_core.report.card_markdown import read_headline
from popalign_core.report.runs_page import ListedRun, State
from storage.readable_runs import ReadableRuns
from storage.roots import FileEntry
from storage.run_folder import RECORD, RESERVED
from tasks.publishing.leaderboard import FILE, PAGE

_KINDS = {"report": "run", "sweep": "sweep", "comparison": "comparison", "train": "training"}
"""Node or stage that a run has -> what kind of run has it; the first counts."""
_CARDS = ("report.md", "card.md")
_COMMANDS = {"stage": "stage", "evaluate": "evaluation", "import": "import", "study": "study"}
_KEPT = re.compile(rf"({'|'.join(_COMMANDS)})(-.+)?-[0-9a-f]{{12}}")
"""As `tasks.common.reservations` names the folders of commands."""
_MOST_AT_ONCE = 16


class PublishedRuns:
    """The runs of a store. A folder is read again only after it has changed."""

    def __init__(self, store: ReadableRuns) -> None:
        self._store = store
        self._known: dict[str, tuple[Mapping[str, FileEntry] | None, ListedRun]] = {}

    def list_runs(self) -> list[ListedRun]:
        """Every folder of `runs/`, by name; one that is damaged says so and hides no other.

        Raises:
            StoreError: When the store cannot be read.
        """
        found = self._store.runs()
        with ThreadPoolExecutor(_MOST_AT_ONCE) as pool:  # an object store takes its time for each answer
            runs = list(pool.map(self._look, found, found.values()))
        self._known = {run.name: (files, run) for files, run in zip(found.values(), runs, strict=True)}
        return runs

    def leaderboard_files(self) -> list[str]:
        """Which of the leaderboard's files are there, the page first."""
        found = self._store.files(None)
        return [file for file in (PAGE, FILE) if file in found]

    def _look(self, name: str, files: Mapping[str, FileEntry] | None) -> ListedRun:
        known = self._known.get(name)
        if known is not None and known[0] == files:
            return known[1]
        if files is None:
            return ListedRun(name, "", "damaged", None, "", ())
        return self._describe(name, files)

    def _describe(self, name: str, files: Mapping[str, FileEntry]) -> ListedRun:
        record, reserved = files.get(RECORD), files.get(RESERVED)
        written = record or reserved
        state, parts = _state(record, reserved), list[str]()
        try:
            parts = self._parts(name, RECORD if record else RESERVED)
        except StoreError:
            state = "damaged"
        kind = next((kind for part, kind in _KINDS.items() if part in parts), "")
        if record is None and (command := _KEPT.fullmatch(name)):
            kind, state = _COMMANDS[command[1]], "kept"
        shown = tuple(file for file in files if file != RESERVED)
        headline = self._headline(name, files) if record else ""
        return ListedRun(name, kind, state, written.modified if written else None, headline, shown)

    def _parts(self, name: str, file: str) -> list[str]:
        """Nodes of a run that is recorded, stages of one that is only begun.

        Raises:
            StoreError: When the file is damaged.
        """
        text = self._store.read_text(name, file)
        try:
            content: Any = {"artifacts": []} if text is None else read_json(text)
            # a run of another version may have no nodes in its record
            nodes = content.get("meta", {}).get("nodes", {}) if file == RECORD else {}
            return [*nodes, *(str(stage) for stage, _ in content["artifacts"])]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{file} of run {name!r} is damaged: {error}; run it again or delete its folder"
            ) from error

    def _headline(self, name: str, files: Mapping[str, FileEntry]) -> str:
        card = next((card for card in _CARDS if card in files), None)
        try:
            text = self._store.read_text(name, card) if card else None
        except StoreError:
            return f"{card} cannot be read"
        return read_headline(text or "") or ""


def _state(record: FileEntry | None, reserved: FileEntry | None) -> State:
    if record is None:
        return "incomplete"
    begun, done = (entry.modified if entry else None for entry in (reserved, record))
    return "again" if begun and done and begun > done else "complete"
