"""Chat completions as they came: what is in them, what they cost, and how they are kept on disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from popalign_core.errors import InputError

_CHARACTERS_A_TOKEN = 3
"""For answers of servers that do not count; English has about four."""


class Completion(BaseModel):
    """The JSON that the model is asked for."""

    model_config = ConfigDict(extra="forbid")
    subjects: list[str]


class UnreadableError(Exception):
    """An answer that came but holds no subjects; the argument is the reason counted for it."""


@dataclass(frozen=True)
class Kept:
    """An answer on disk, `call-NNNN-<request>.json`, or `...unreadable-NNNN.json` with a reason.

    Attributes:
        answer: The body of the response, whatever it was.
        reason: Why it holds no subjects, or None.
        n_tokens: What it cost.
    """

    answer: str
    reason: str | None
    n_tokens: int


def read_subjects(text: str) -> list[str]:
    """Subjects out of a raw chat completion.

    Raises:
        UnreadableError: `refusal`, `truncated` or `not_json`.
    """
    try:
        choice = json.loads(text)["choices"][0]
        message = choice["message"]
        refused = bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter"
        content = message.get("content") or ""
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UnreadableError("not_json") from error
    if refused:
        raise UnreadableError("refusal")
    try:
        return Completion.model_validate_json(_outermost_object(content)).subjects
    except (ValidationError, TypeError) as error:
        raise UnreadableError("truncated" if choice.get("finish_reason") == "length" else "not_json") from error


def _outermost_object(content: str) -> str:
    """Without the thoughts, the code fence or the courtesies that servers without structured output let through."""
    content = content.rpartition("</think>")[2]
    start, end = content.find("{"), content.rfind("}")
    return content[start : end + 1] if 0 <= start < end else content


def count_tokens(request: dict[str, Any], answer: str) -> int:
    """What an answer cost, by the server's count or, without one, by its length and the request's."""
    try:
        counted = json.loads(answer)["usage"]["total_tokens"]
    except (json.JSONDecodeError, KeyError, TypeError):
        counted = None
    if isinstance(counted, int) and counted > 0:
        return counted
    return (len(json.dumps(request, ensure_ascii=False)) + len(answer)) // _CHARACTERS_A_TOKEN


def keep(path: Path, request: dict[str, Any], answer: str, reason: str | None = None) -> None:
    """Write under another name first: a kill must not leave half an answer to be replayed."""
    document = {"request": request, "answer": answer} | ({} if reason is None else {"reason": reason})
    draft = path.with_suffix(".partial")  # which the store never publishes
    draft.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    draft.replace(path)


def load_kept(path: Path) -> Kept:
    """An answer from disk.

    Raises:
        InputError: When the file is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        answer, reason = document["answer"], document.get("reason")
        if reason is None:
            read_subjects(answer)
        return Kept(answer, reason, count_tokens(document["request"], answer))
    except (UnreadableError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"the kept answer {path} is damaged; delete that file and run again to ask anew") from error
