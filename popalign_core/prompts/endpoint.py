"""Any OpenAI-compatible endpoint, asked in parallel and patiently; no answer is paid for twice.

The `openai` client would retry by itself, but each of its calls for itself: past the rate limit, and when the service
asks one for patience the others go on. So its retries are off, and they are here, where all calls share one pace.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from popalign_core.config import LLMConfig
from popalign_core.errors import ConfigError, PopAlignError, ServiceError
from popalign_core.ids import content_id
from popalign_core.prompts.answers import (
    Completion,
    Kept,
    UnreadableError,
    count_tokens,
    keep,
    load_kept,
    load_set_aside,
    read_subjects,
    set_aside,
)
from popalign_core.prompts.pacing import Budget, Pace, SpentError, StoppedError, backoff_s
from popalign_core.prompts.service_errors import (
    asked_wait,
    explain_error,
    may_pass,
    refuses_form,
    status_of,
    unwrap_error,
)

if TYPE_CHECKING:
    import openai

MAX_UNREADABLE = 3
"""Unreadable answers to one request before giving up: a model that refuses three times will refuse the fourth."""
_LARGEST_ANSWER = 1 << 24
"""Bytes; no model writes as many, but a few packed ones can become gigabytes."""

_SCHEMA = {"name": "subjects", "strict": True, "schema": Completion.model_json_schema()}
_FORMS: tuple[dict[str, Any], ...] = (
    {"response_format": {"type": "json_schema", "json_schema": _SCHEMA}},
    {"response_format": {"type": "json_object"}},
    {},
)
"""From the strictest: servers differ in which they accept, and the request itself describes the JSON too."""
_PLAIN = len(_FORMS) - 1
_HIDDEN = "***"
_SHORTEST_KEY = 8
"""Characters; what is shorter, such as the "none" of local servers, may be a word of any answer."""


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
        self._connecting = Lock()

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
            ConfigError: When the key can be none.
            InputError: When a kept answer was damaged.
        """
        stems = [f"call-{first_call + i:04d}-{content_id(request)}" for i, request in enumerate(requests)]
        with ThreadPoolExecutor(self._llm.n_parallel) as pool:
            futures = [
                pool.submit(self._ask_or_stop, stem, request) for stem, request in zip(stems, requests, strict=True)
            ]
            try:
                yield from _collect(futures)
            finally:
                if not all(future.done() for future in futures):  # interrupted
                    self._pace.stop()

    def _connect(self) -> "openai.OpenAI":
        """The client, which is not even imported when all answers are on disk."""
        import openai

        with self._connecting:
            if self._client is None:
                self._client = openai.OpenAI(
                    base_url=self._llm.base_url,
                    api_key=_api_key(self._llm.api_key_env),
                    max_retries=0,
                    timeout=self._llm.timeout_s,
                )
            return self._client

    def _ask_or_stop(self, stem: str, request: dict[str, Any]) -> Reply:
        try:
            return self._ask(stem, request)
        except BaseException:
            self._pace.stop()
            raise

    def _ask(self, stem: str, request: dict[str, Any]) -> Reply:
        """Ask until an answer can be read; each is on disk before anybody looks into it."""
        path = self._path(stem)
        rejected = [_reject(kept) for kept in load_set_aside(path)]
        n_asked = 0
        while True:
            if not path.exists():
                n_asked += 1
                keep(path, request, self._request_answer(request))
            try:
                return Reply(read_subjects(load_kept(path).answer), rejected)
            except UnreadableError as fault:
                rejected.append(_reject(set_aside(path, fault.reason)))
                if n_asked == MAX_UNREADABLE:
                    raise self._unreadable(fault, rejected[-1]) from fault

    def _unreadable(self, fault: UnreadableError, last: tuple[str, str]) -> ServiceError:
        start, reason = last
        return ServiceError(
            f"{self._llm.base_url}: model {self._llm.model!r} gave {MAX_UNREADABLE} answers in a row that are not the "
            f"JSON asked for (last: {reason}, {start!r}): {fault.explanation}. Use a model and server with structured "
            f"output; the raw answers are in {self._folder}"
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
        """In the strictest form that this server takes, patiently.

        A server that fails on the form may say so in words or by nothing but an error of its own, 500, as in an outage:
        so the last try after such an error is in the plain form, and what helped is remembered.
        """
        import openai

        form, n_tries = self._form, 0
        while True:
            form = max(form, self._form)  # what another call found out meanwhile
            self._pace.wait()
            n_tries += 1
            try:
                answer = self._send(request | _FORMS[form])
            except openai.OpenAIError as error:
                if form < _PLAIN and refuses_form(error):
                    form, n_tries = form + 1, 0
                    self._form = max(self._form, form)
                    continue
                may_be_form = form < _PLAIN and status_of(error) == 500 and n_tries >= max(self._llm.max_retries, 1)
                if not may_pass(error) or (n_tries > self._llm.max_retries and not may_be_form):
                    said = self._without_key(explain_error(error, self._llm, n_tries, self._without_key))
                    # the client's error may hold the key, and Prefect keeps all that a traceback shows
                    raise ServiceError(f"{self._llm.base_url}: {said}").passing(may_pass(error)) from None
                form = _PLAIN if may_be_form else form
                self._rest(error, n_tries)
            else:
                self._form = max(self._form, form)
                return answer

    def _send(self, request: dict[str, Any]) -> str:
        """The body of the response; JSON is UTF-8 whatever the header says, and what is not is no reason to lose it.

        An error that the body reports is raised: it is no answer, and nothing was paid for it.

        The client's own time limit is one of silence: who sends a byte now and then would never be left.
        """
        import openai

        client, body = self._connect(), bytearray()
        with client.chat.completions.with_streaming_response.create(**request) as response:
            deadline = time.monotonic() + self._llm.timeout_s
            try:
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > deadline:
                        raise openai.APITimeoutError(response.http_request)
                    if len(body) > _LARGEST_ANSWER:
                        break
            except openai.OpenAIError:
                raise
            except Exception as error:  # of the client's transport: httpx or httpx2, by its version
                raise openai.APIConnectionError(request=response.http_request) from error
        answer = body[:_LARGEST_ANSWER].decode("utf-8-sig", errors="replace")
        if (reported := unwrap_error(answer, response.http_response)) is not None:
            raise reported
        return self._without_key(answer)

    def _without_key(self, text: str) -> str:
        """A server may send the key back, in an answer that is kept or in an error that is printed."""
        key = _api_key(self._llm.api_key_env)
        if len(key) < _SHORTEST_KEY:
            return text
        in_json = json.dumps(key)[1:-1]
        for spelling in (key, in_json, in_json.replace("/", r"\/")):
            text = text.replace(spelling, _HIDDEN)
        return text

    def _rest(self, error: "openai.OpenAIError", n_tries: int) -> None:
        asked = asked_wait(error)
        if asked:
            self._pace.hold(asked)
        else:  # "Retry-After: 0" must not become a storm
            self._pace.rest(backoff_s(n_tries))


def _api_key(variable: str) -> str:
    """Local servers want no key, but the client insists on one; a service that needs it answers 401."""
    key = os.environ.get(variable, "").strip() or "none"
    if not key.isascii() or not key.isprintable():  # the client would stumble, and print it
        raise ConfigError(f"${variable} holds a key with characters that no key has; copy it again")
    return key


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
