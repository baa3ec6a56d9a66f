"""Chat completions as they came: what is in them, what they cost, and how they are kept on disk."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from popalign_core.documents import read_json
from popalign_core.errors import InputError
from popalign_core.prompts.loose_json import find_subjects

_CHARACTERS_A_TOKEN = 3
"""For answers of servers that do not count; English has about four."""
_MOST_TOKENS = 10**9
"""Of one answer; a server that counts more has miscounted."""

_TAGS = r"think|thinking|thought|thoughts|reasoning"
_THOUGHT_ENDS = re.compile(rf"</(?:{_TAGS})>|\[/THINK\]|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_THOUGHT_BEGINS = re.compile(rf"\s*(?:<(?:{_TAGS})>|\[THINK\]|<\|channel\|>analysis<\|message\|>)", re.IGNORECASE)
"""As models mark what they think before they answer: most with a tag, Magistral in brackets, gpt-oss by channels."""
_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""As servers name it beside `content`."""


class Completion(BaseModel):
    """The JSON that the model is asked for."""

    model_config = ConfigDict(extra="forbid")
    subjects: list[str]


class UnreadableError(Exception):
    """An answer that came but holds no subjects.

    Attributes:
        reason: What it is counted as: `refusal`, `truncated`, `in_reasoning` or `not_json`.
        explanation: What is wrong with it, and where something helps, what.
    """

    def __init__(self, reason: str, explanation: str) -> None:
        super().__init__(reason, explanation)
        self.reason, self.explanation = reason, explanation


@dataclass(frozen=True)
class Kept:
    """An answer on disk, `call-NNNN-<request>.json`, or `...unreadable-NNNN.json` with a reason.

    Attributes:
        request: What was asked.
        answer: The body of the response, whatever it was.
        reason: Why it holds no subjects; None when it does, or was not read yet.
    """

    request: dict[str, Any]
    answer: str
    reason: str | None

    @property
    def n_tokens(self) -> int:
        """What it cost."""
        return count_tokens(self.request, self.answer)


@dataclass(frozen=True)
class _Message:
    """What a model said, apart from where its thoughts are -> what it thought."""

    said: str
    thoughts: dict[str, str]


def read_subjects(answer: str) -> list[str]:
    """Subjects out of a raw chat completion.

    They are read in what the model says, not in what it thinks first, unless it says nothing: several servers put all
    of an answer among the thoughts.

    Raises:
        UnreadableError: Whatever else the answer is.
    """
    choice, fields = _first_message(answer)
    parts = _parts(fields.get("content"))
    refusals = [fields.get("refusal"), *(part.get("refusal") for part in parts)]
    if any(refusals) or choice.get("finish_reason") == "content_filter":
        raise UnreadableError("refusal", "the model or the service refuses")
    message = _split(fields, parts)
    thoughts = (text for thought in message.thoughts.values() for text in (_after_thoughts(thought), thought))
    for text in [message.said] if message.said.strip() else thoughts:
        if (subjects := find_subjects(text)) is not None:
            return subjects
    raise _fault(choice, fields, message)


def _first_message(answer: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first choice, and the fields of its message."""
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(
            "not_json", f"the answer {_look(answer) or f'cannot be read as JSON: {error}'}"
        ) from error
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices:
        if isinstance(document, dict) and document.get("error"):
            raise UnreadableError("not_json", _said(document["error"]))
        raise UnreadableError("not_json", "the answer has no choices, so it is not a chat completion")
    fields = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(fields, dict):
        raise UnreadableError("not_json", "the first choice of the answer has no message")
    return choices[0], fields


def _look(answer: str) -> str | None:
    """What a text is that is no JSON, if that is known."""
    start = answer.lstrip().lower()
    if start.startswith("<"):
        return "is a web page, not a completion; correct prompts.llm.base_url, or log in there"
    if start.startswith(("data:", "event:", ": ")):
        return "is a stream of events, though none was asked for; turn streaming off on the server"
    return None


def _said(error: Any) -> str:
    """The words of a service that reports an error as if all were well."""
    return f"the service reports an error with status 200, {str(error)[:200]!r}"


def _parts(content: Any) -> list[dict[str, Any]]:
    """A content as a list of parts, which is what some servers send; what is neither text nor part is nothing."""
    items = content if isinstance(content, list) else [content]
    return [{"text": item} if isinstance(item, str) else item for item in items if isinstance(item, str | dict)]


def _split(fields: dict[str, Any], parts: list[dict[str, Any]]) -> _Message:
    written = _join(part for part in parts if not _is_thought(part))
    thoughts = {name: _join(_parts(fields.get(name))) for name in _THOUGHT_FIELDS}
    thinking = [_parts(part.get("thinking", part)) for part in parts if _is_thought(part)]
    thoughts["a part of thinking"] = "".join(map(_join, thinking))
    thoughts["tags of thinking"] = written
    return _Message(_after_thoughts(written), {where: text for where, text in thoughts.items() if text.strip()})


def _after_thoughts(text: str) -> str:
    """What stands behind the last mark that thoughts end; nothing where they begin and never end."""
    ends = [end.end() for end in _THOUGHT_ENDS.finditer(text)]
    said = text[ends[-1] if ends else 0 :]
    return "" if _THOUGHT_BEGINS.match(said) else said


def _is_thought(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    return isinstance(kind, str) and kind.startswith(("thinking", "reasoning"))


def _join(parts: Iterable[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _fault(choice: dict[str, Any], fields: dict[str, Any], message: _Message) -> UnreadableError:
    """What is wrong with a message without subjects."""
    is_silent = not message.said.strip()
    if choice.get("error"):
        return UnreadableError("not_json", _said(choice["error"]))
    if choice.get("finish_reason") == "length":
        when = " while the model still thinks" if is_silent and message.thoughts else ""
        return UnreadableError(
            "truncated", f"the answer breaks off at the limit of tokens{when}; raise max_tokens on the server"
        )
    if is_silent and message.thoughts:
        return UnreadableError(
            "in_reasoning",
            f"content is empty, the server put the text into {' and '.join(message.thoughts)}; "
            "turn off its reasoning parser or the model's thinking",
        )
    if is_silent and (fields.get("tool_calls") or fields.get("function_call")):
        return UnreadableError("not_json", "the model calls tools in place of giving a content")
    content = fields.get("content")
    if content is not None and not isinstance(content, str | list):
        return UnreadableError("not_json", f"content is of type {type(content).__name__}, not text")
    if is_silent:
        return UnreadableError("not_json", "content is empty")
    return UnreadableError("not_json", 'content holds no {"subjects": ["...", "..."]}')


def count_tokens(request: dict[str, Any], answer: str) -> int:
    """What an answer cost, by the server's count or, without one, by its length and the request's."""
    try:
        counted = json.loads(answer)["usage"]["total_tokens"]
    except (ValueError, RecursionError, KeyError, TypeError):
        counted = None
    if isinstance(counted, int) and 0 < counted <= _MOST_TOKENS:
        return counted
    return (len(json.dumps(request, ensure_ascii=False)) + len(answer)) // _CHARACTERS_A_TOKEN


def keep(path: Path, request: dict[str, Any], answer: str, reason: str | None = None) -> None:
    """Write under another name first: a kill must not leave half an answer to be replayed."""
    document = {"request": request, "answer": answer} | ({} if reason is None else {"reason": reason})
    draft = path.with_suffix(".partial")  # which the store never publishes
    draft.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    draft.replace(path)


def load_kept(path: Path) -> Kept:
    """An answer from disk, whether it can be read or not.

    Raises:
        InputError: When the file is damaged.
    """
    try:
        document = read_json(path.read_bytes())
        request, answer, reason = document["request"], document["answer"], document.get("reason")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path) from error
    if not isinstance(request, dict) or not isinstance(answer, str) or not isinstance(reason, str | None):
        raise _damaged(path)
    return Kept(request, answer, reason)


def _damaged(path: Path) -> InputError:
    return InputError(f"the kept answer {path} is damaged; delete that file and run again to ask again")


def set_aside(path: Path, reason: str) -> Kept:
    """Note on a kept answer why it cannot be read, and give it the name of an unreadable one, so that another may come.

    Both steps are whole or not at all: a kill between them leaves the answer to be set aside by the next run.
    """
    kept = replace(load_kept(path), reason=reason)
    keep(path, kept.request, kept.answer, reason)
    names = (path.with_name(f"{path.stem}.unreadable-{number:04d}.json") for number in count())
    path.rename(next(name for name in names if not name.exists()))
    return kept


def load_set_aside(path: Path) -> list[Kept]:
    """The unreadable answers beside a kept one, in the order in which they came.

    Where the readable one is missing, the first of them that can be read by now takes its place: it was paid for, and
    what was unreadable to an earlier version need not be to this one.

    Raises:
        InputError: When a file is damaged.
    """
    unreadable = []
    for each in sorted(path.parent.glob(f"{path.stem}.unreadable-*.json")):
        kept = load_kept(each)
        if not path.exists() and _is_readable(kept.answer):
            each.rename(path)
        else:
            unreadable.append(kept)
    return unreadable


def _is_readable(answer: str) -> bool:
    try:
        read_subjects(answer)
    except UnreadableError:
        return False
    return True
