"""Any OpenAI-compatible endpoint, asked in parallel and patiently; no answer is paid for twice.

The `openai` client would retry by itself, but each of its calls for itself: past the rate limit, and when the service
asks one for patience the others go on. So its retries are off, and they are here, where all calls share one pace.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core.config import LLMConfig
from popalign_core.errors import PopAlignError, ServiceError
from popalign_core.ids import content_id
from popalign_core.prompts.answers import (
    Completion,
    Kept,
    UnreadableError,
    count_tokens,
    keep,
    load_kept,
    read_subjects,
)
from popalign_core.prompts.pacing import Budget, Pace, SpentError, StoppedError, backoff_s, retry_after_s

if TYPE_CHECKING:
    import openai

MAX_UNREADABLE = 3
"""Unreadable answers to one request before giving up: a model that refuses three times will refuse the fourth."""
MAX_RETRY_AFTER_S = 600.0
"""A service that asks for more patience than this is better asked again by a later run."""

_SCHEMA = {"name": "subjects", "strict": True, "schema": Completion.model_json_schema()}
_FORMS: tuple[dict[str, Any], ...] = (
    {"response_format": {"type": "json_schema", "json_schema": _SCHEMA}},
    {"response_format": {"type": "json_object"}},
    {},
)
"""From the strictest: servers differ in which they accept, and the request itself describes the JSON too."""
_REFUSING = (400, 422, 501)


@dataclass(frozen=True)
class Reply:
    """What one request brought: its subjects, and (start of the text, reason) of unreadable answers on the way."""

    subjects: list[str]
    unreadable: list[tuple[str, str]]


class Endpoint:
    """One endpoint with the answers it has given, on disk."""

    def __init__(self, llm: LLMConfig, folder: Path) -> None:
        self._llm, self._folder = llm, folder
        self._pace = Pace(llm.requests_per_minute)
        self._budget = Budget(llm.max_calls, llm.max_tokens_total)
        for path in sorted(folder.glob("call-*.json")):
            self._budget.record(load_kept(path).n_tokens)
        self._form = 0
        self._client: openai.OpenAI | None = None

    def close(self) -> None:
        """Close the connections, if any were opened."""
        if self._client is not None:
            self._client.close()

    def ask_all(self, first_call: int, requests: Sequence[dict[str, Any]]) -> Iterator[tuple[int, Reply]]:
        """Ask several at once; what is on disk is not asked again.

        After an error nothing new is begun, but what is under way is waited for, kept and yielded before it is raised.

        Args:
            first_call: Number of the first request; requests are told apart by number and content.
            requests: Chat completions without response format.

        Yields:
            Number of the request and reply, in the order of the requests, whoever came first.

        Raises:
            ServiceError: When the endpoint is down, or still refuses after the retries, or keeps answering something
                else than the JSON asked for.
            SpentError: When the budget does not hold another call.
            InputError: When a kept answer was damaged.
        """
        stems = [f"call-{first_call + i:04d}-{content_id(request)}" for i, request in enumerate(requests)]
        if not all(self._path(stem).exists() for stem in stems):
            self._connect()
        with ThreadPoolExecutor(self._llm.n_parallel) as pool:
            futures = [
                pool.submit(self._ask_or_stop, stem, request) for stem, request in zip(stems, requests, strict=True)
            ]
            try:
                yield from _collect(futures)
            finally:
                if not all(future.done() for future in futures):  # interrupted
                    self._pace.stop()

    def _connect(self) -> None:
        import openai

        if self._client is None:
            # Local servers want no key, but the client insists on one; a service that needs it answers 401.
            key = os.environ.get(self._llm.api_key_env) or "none"
            self._client = openai.OpenAI(
                base_url=self._llm.base_url, api_key=key, max_retries=0, timeout=self._llm.timeout_s
            )

    def _ask_or_stop(self, stem: str, request: dict[str, Any]) -> Reply:
        try:
            return self._ask(stem, request)
        except BaseException:
            self._pace.stop()
            raise

    def _ask(self, stem: str, request: dict[str, Any]) -> Reply:
        failed = [load_kept(path) for path in sorted(self._folder.glob(f"{stem}.unreadable-*.json"))]
        if self._path(stem).exists():
            return Reply(read_subjects(load_kept(self._path(stem)).answer), [_reject(kept) for kept in failed])
        for _ in range(MAX_UNREADABLE):
            answer = self._request_answer(request)
            try:
                subjects = read_subjects(answer)
            except UnreadableError as fault:
                failed.append(Kept(answer, str(fault), count_tokens(request, answer)))
                keep(self._path(f"{stem}.unreadable-{len(failed) - 1:04d}"), request, answer, reason=str(fault))
                continue
            keep(self._path(stem), request, answer)
            return Reply(subjects, [_reject(kept) for kept in failed])
        start, reason = _reject(failed[-1])
        raise ServiceError(
            f"{self._llm.base_url}: model {self._llm.model!r} gave {MAX_UNREADABLE} answers in a row that are not the "
            f"JSON asked for (last: {reason}, {start!r}); use a model and server with structured output. "
            f"The raw answers are in {self._folder}"
        )

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _request_answer(self, request: dict[str, Any]) -> str:
        """The raw answer, because what is paid for is kept as it came, whatever it is."""
        self._budget.open_call()
        answer = None
        try:
            answer = self._call(request)
            return answer
        finally:
            self._budget.close_call(None if answer is None else count_tokens(request, answer))

    def _call(self, request: dict[str, Any]) -> str:
        import openai

        while True:
            form = self._form
            try:
                return self._call_patiently(request | _FORMS[form])
            except openai.OpenAIError as error:
                if form + 1 < len(_FORMS) and _refuses_form(error):
                    self._form = max(self._form, form + 1)
                    continue
                raise ServiceError(f"{self._llm.base_url}: {_explain(error, self._llm)}") from error

    def _call_patiently(self, request: dict[str, Any]) -> str:
        import openai

        assert self._client is not None
        n_tries = 0
        while True:
            self._pace.wait()
            n_tries += 1
            try:
                return str(self._client.chat.completions.with_raw_response.create(**request).text)
            except openai.OpenAIError as error:
                if n_tries > self._llm.max_retries or not _may_pass(error):
                    raise
                self._rest(error, n_tries)

    def _rest(self, error: "openai.OpenAIError", n_tries: int) -> None:
        asked = _asked_wait(error)
        if asked:
            self._pace.hold(asked)
        else:  # "Retry-After: 0" must not become a storm
            self._pace.rest(backoff_s(n_tries))


def _collect(futures: Sequence["Future[Reply]"]) -> Iterator[tuple[int, Reply]]:
    stopped: list[Exception] = []
    for number, future in enumerate(futures):
        try:
            yield number, future.result()
        except (PopAlignError, SpentError, StoppedError) as error:
            stopped.append(error)
    if stopped:  # by the first that was not stopped by another
        raise next((error for error in stopped if not isinstance(error, StoppedError)), stopped[0])


def _reject(kept: Kept) -> tuple[str, str]:
    return kept.answer[:200], str(kept.reason)


def _asked_wait(error: Exception) -> float | None:
    import openai

    return retry_after_s(error.response.headers) if isinstance(error, openai.APIStatusError) else None


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    import openai

    if isinstance(error, openai.APIConnectionError):
        return True
    if not isinstance(error, openai.APIStatusError) or _has_no_quota(error) or _refuses_form(error):
        return False
    if (_asked_wait(error) or 0.0) > MAX_RETRY_AFTER_S:
        return False
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def _has_no_quota(error: "openai.APIStatusError") -> bool:
    return error.status_code == 429 and error.code == "insufficient_quota"


def _refuses_form(error: Exception) -> bool:
    """Whether the response format may be what is wrong; some servers call it an error of their own, 500."""
    import openai

    if not isinstance(error, openai.APIStatusError):
        return False
    named = any(word in error.response.text for word in ("response_format", "json_schema", "json_object"))
    return error.status_code in _REFUSING or (error.status_code == 500 and named)


def _explain(error: Exception, llm: LLMConfig) -> str:
    import openai

    tries = f"after {llm.max_retries + 1} tries" if _may_pass(error) else "at once"
    if isinstance(error, openai.APITimeoutError):
        return f"no answer within {llm.timeout_s:g} s {tries}; raise prompts.llm.timeout_s or look at the server"
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        return f"cannot be reached {tries} ({cause}); start the server or correct prompts.llm.base_url"
    if not isinstance(error, openai.APIStatusError):
        return f"the call failed ({error}); look at the server's log"
    if _has_no_quota(error):
        return "says that the quota is used up (429 insufficient_quota); the answers so far are kept: run again later"
    if (asked := _asked_wait(error)) is not None and asked > MAX_RETRY_AFTER_S:
        return f"asks to wait {asked:.0f} s (HTTP {error.status_code}); the answers so far are kept: run again then"
    if error.status_code == 429:
        return (
            f"still answers 429 (too many requests) {tries}; lower prompts.llm.requests_per_minute or n_parallel, "
            "wait, raise max_retries, or check the quota"
        )
    if error.status_code in (401, 403):
        return f"refuses the key (HTTP {error.status_code}); put a valid one into ${llm.api_key_env}"
    if error.status_code == 404:
        return f"has no such address or model (404, model {llm.model!r}); correct prompts.llm.base_url or .model"
    return f"answers HTTP {error.status_code} {tries}: {error.response.text[:200]!r}; look at the server's log"
