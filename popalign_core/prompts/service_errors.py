"""What went wrong with a call to a service: whether it may pass, whether the response format is at fault, and in words.

Several servers answer with status 200 and an error in the body; it is taken for the HTTP error that it stands for.
"""

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from popalign_core.config import LLMConfig
from popalign_core.prompts.pacing import retry_after_s

if TYPE_CHECKING:
    import openai

MAX_RETRY_AFTER_S = 600.0
"""A service that asks for more patience than this is better asked again by a later run."""

_REFUSING = (400, 422, 501)
"""Status codes that refuse the form, or something else that no patience helps."""
_OF_FORMS = re.compile(r"response.?format|json.?(schema|object|mode)|schema|grammar|guided|structured", re.IGNORECASE)
"""Words by which servers refuse a form under other codes; llama.cpp: 500, "failed to parse grammar"."""
_OF_KEYS = re.compile(r"api.?key", re.IGNORECASE)
"""Words by which services refuse a key with 400; Gemini: "API key not valid"."""
_MEANT: tuple[tuple[int, re.Pattern[str]], ...] = tuple(
    (status, re.compile(words, re.IGNORECASE))
    for status, words in (
        (429, r"quota|rate.?limit|too many requests"),
        (401, r"authenti|unauthori[sz]ed|api.?key|permission|forbidden"),
        (404, r"not.?found|does not exist|unexpected endpoint|(no such|unknown) model"),
        (400, r"invalid.?request|bad.?request"),
    )
)
"""Statuses by the words of errors without a code; what has none of these may pass."""
_WITHOUT_STATUS = "reported with status 200"
_N_SHOWN = 200


def unwrap_error(answer: str, response: Any) -> "openai.APIStatusError | None":
    """The error in the body of a response that says that all is well; None where there is none.

    Args:
        answer: The body, as text.
        response: Of the client's transport.

    Returns:
        With the status that it gives or means: 500 without any, also for an object that is no completion at all.
    """
    import openai

    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    said = document.get("error") or document
    choices = document.get("choices")
    if isinstance(choices, list) and choices:
        said = _error_of(choices[0])
        if not said:
            return None
    waits = {name: value for name, value in response.headers.items() if name.lower().startswith("retry-after")}
    status, content = _meant_status(said), answer.encode(errors="replace")
    error = type(response)(status, headers=waits, content=content, request=response.request)
    return openai.APIStatusError(_WITHOUT_STATUS, response=error, body=said)


def _error_of(choice: Any) -> Any:
    """Of a choice that has nothing else."""
    message = choice.get("message") if isinstance(choice, dict) else None
    has_content = isinstance(message, dict) and bool(message.get("content"))
    return choice.get("error") if isinstance(choice, dict) and not has_content else None


def _meant_status(said: Any) -> int:
    fields = said if isinstance(said, dict) else {"message": said}
    for name in ("code", "status"):
        if re.fullmatch("[45][0-9][0-9]", str(fields.get(name))):
            return int(fields[name])
    words = " ".join(str(fields.get(name) or "") for name in ("code", "type", "status", "message", "detail"))
    return next((status for status, pattern in _MEANT if pattern.search(words)), 500)


def _text(response: Any) -> str:
    return bytes(response.content).decode("utf-8-sig", errors="replace")


def status_of(error: Exception) -> int | None:
    """HTTP's, of an error that has one."""
    import openai

    return error.status_code if isinstance(error, openai.APIStatusError) else None


def asked_wait(error: Exception) -> float | None:
    """Seconds that the service asks to wait; None where it does not."""
    import openai

    return retry_after_s(error.response.headers) if isinstance(error, openai.APIStatusError) else None


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    import openai

    if isinstance(error, openai.APIConnectionError):
        return True
    if not isinstance(error, openai.APIStatusError) or _has_no_quota(error):
        return False
    if (asked_wait(error) or 0.0) > MAX_RETRY_AFTER_S:
        return False
    return error.status_code in (408, 409, 429) or (error.status_code >= 500 and error.status_code not in _REFUSING)


def _has_no_quota(error: "openai.APIStatusError") -> bool:
    return error.status_code == 429 and error.code == "insufficient_quota"


def refuses_form(error: Exception) -> bool:
    """Whether the response format may be what is wrong; some servers call it an error of their own, 500."""
    import openai

    if not isinstance(error, openai.APIStatusError) or _refuses_key(error) or error.status_code in (408, 429):
        return False
    return error.status_code in _REFUSING or bool(_OF_FORMS.search(_text(error.response)))


def _refuses_key(error: "openai.APIStatusError") -> bool:
    return error.status_code in (401, 403) or (
        error.status_code == 400 and bool(_OF_KEYS.search(_text(error.response)))
    )


def explain_error(error: Exception, llm: LLMConfig, n_tries: int, hide: Callable[[str], str]) -> str:
    """What the service did, and what to do about it; `hide` takes keys out of its words before they are cut."""
    import openai

    if isinstance(error, openai.APIStatusError) and error.message == _WITHOUT_STATUS:
        words = hide(_text(error.response))[:_N_SHOWN]
        return f"{_explain(error, llm, n_tries, hide)}; it said, with status 200: {words!r}"
    return _explain(error, llm, n_tries, hide)


def _explain(error: Exception, llm: LLMConfig, n_tries: int, hide: Callable[[str], str]) -> str:
    import openai

    tries = f"after {n_tries} tries" if may_pass(error) else "at once"
    if isinstance(error, openai.APITimeoutError):
        return f"no answer within {llm.timeout_s:g} s {tries}; raise prompts.llm.timeout_s or look at the server"
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        return f"cannot be reached {tries} ({cause}); start the server or correct prompts.llm.base_url"
    if not isinstance(error, openai.APIStatusError):
        return f"the call failed ({error}); look at the server's log"
    if _has_no_quota(error):
        return (
            "reports that the quota is used up (429 insufficient_quota); the answers so far are kept: run again later"
        )
    if (asked := asked_wait(error)) is not None and asked > MAX_RETRY_AFTER_S:
        return f"asks to wait {asked:.0f} s (HTTP {error.status_code}); the answers so far are kept: run again then"
    if error.status_code == 429:
        return (
            f"still answers 429 (too many requests) {tries}; lower prompts.llm.requests_per_minute or n_parallel, "
            "wait, raise max_retries, or check the quota"
        )
    if _refuses_key(error):
        return f"refuses the key (HTTP {error.status_code}); put a valid one into ${llm.api_key_env}"
    if error.status_code == 404:
        return f"has no such address or model (404, model {llm.model!r}); correct prompts.llm.base_url or .model"
    if error.message == _WITHOUT_STATUS:
        return f"reports an error {tries}; look at the server's log"
    words = hide(_text(error.response))[:_N_SHOWN]
    return f"answers HTTP {error.status_code} {tries}: {words!r}; look at the server's log"
