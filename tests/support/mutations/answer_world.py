"""Answers of language models: whole ones, and reading them, also through a server."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from llm_service import Reply, serving

from mutations.editing import put
from mutations.judging import Taker, popalign
from mutations.table_world import kept
from popalign_core.config import parse_config
from popalign_core.prompts.answers import UnreadableError, read_subjects
from popalign_core.prompts.synthesis import synthesise_prompts
from storage.store import ArtifactRef, Store

SUBJECTS = ("baker", "deep sea diver", "violin maker")
ASKED = json.dumps({"subjects": list(SUBJECTS)})
TEXTS = sorted(f"a photo of a {subject}" for subject in SUBJECTS)


def body(content: Any, finish_reason: str | None = "stop", **fields: Any) -> str:
    """A chat completion."""
    message = {"role": "assistant", "content": content} | fields
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    document = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return json.dumps(document)


@dataclass(frozen=True)
class Script:
    """What a server answers, and how it is asked.

    Attributes:
        replies: One a request, the last one again and again.
        llm: Settings of `prompts.llm` beside the address.
        environment: Variables.
        prepare: Puts something into the folder of answers.
    """

    replies: tuple[Reply, ...]
    llm: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], Any] | None = None

    def settings(self, url: str) -> dict[str, Any]:
        """A configuration."""
        llm = {"base_url": url, "model": "m", "max_retries": 1, "timeout_s": 10.0, "themes": []} | dict(self.llm)
        prompts = {"source": "llm", "n_train": len(SUBJECTS), "eval_subjects": ["engineer"], "llm": llm}
        return {"axes": [{"name": "gender", "classes": ["male", "female"]}], "prompts": prompts}


class AnswerWorld:
    """One answer, read as it came or by way of a server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = Taker(body(ASKED), _read)
        script = Script((Reply(body=body(ASKED)),))
        self.served = Taker(script, _ask, _ask_by_command)
        self.kept = Taker(script, _ask)  # answers of another run, which the command line has no folder for


def _read(answer: str, scratch: Path) -> Any:
    """The subjects, or why there are none, as it is counted."""
    try:
        return read_subjects(answer)
    except UnreadableError as fault:
        return {fault.reason: 1}


def _ask(script: Script, scratch: Path) -> Any:
    """The training prompts, and what was rejected, by reason."""
    with pytest.MonkeyPatch.context() as patch, serving() as service:
        for name, value in {"NO_PROXY": "127.0.0.1", **script.environment}.items():
            patch.setenv(name, value)
        service.play(*script.replies)
        config = parse_config(script.settings(service.url))
        if script.prepare is not None:
            # with the names that the requests have
            synthesise_prompts(config.prompts, config.axes, scratch / "answers")
            script.prepare(scratch / "answers")
        prompts, rejected = synthesise_prompts(config.prompts, config.axes, scratch / "answers")
    return sorted(prompts["text"][prompts["split"] == "train"]), dict(Counter(rejected["reason"]))


def _ask_by_command(script: Script, scratch: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch, serving() as service:
        for name, value in script.environment.items():
            patch.setenv(name, value)
        service.play(*script.replies)
        file = put(scratch / "run.json", json.dumps(script.settings(service.url)))
        said = popalign("stage", "prompts", "--config", str(file), "--root", str(scratch / "store"))
    return kept(Store(str(scratch / "store")), ArtifactRef(*said.split()[-3].split("/")))
