"""Errors that a service reports with status 200: paced and explained as the HTTP errors that they stand for."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from llm_service import AT_ONCE, Reply, Service, answer, completion, serving

from popalign_core.config import Axis, LLMConfig, PromptsConfig
from popalign_core.errors import ServiceError
from popalign_core.prompts import pacing
from popalign_core.prompts.synthesis import synthesise_prompts

AXES = (Axis(name="gender", classes=("male", "female")),)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


def write(url: str, folder: Path) -> list[str]:
    llm = LLMConfig(base_url=url, model="m", max_retries=2, timeout_s=10.0)
    return synthesise_prompts(PromptsConfig(source="llm", n_train=1, llm=llm), AXES, folder)[0]["subject"].tolist()


PASSING = {
    "OpenRouter": '{"error": {"message": "Provider returned error", "code": 429}}',
    "a code in words": '{"error": {"message": "slow down", "type": "rate_limit_exceeded"}}',
    "a text": '{"error": "the engine is overloaded"}',
    "without choices": '{"id": "c", "object": "chat.completion"}',
    "no choices": '{"choices": []}',
    "choices null": '{"choices": null, "error": {}}',
    "of a choice": '{"choices": [{"message": {"content": ""}, "error": {"message": "upstream", "code": 502}}]}',
    "of a choice without a message": '{"choices": [{"error": {"code": "503"}}]}',
}


@pytest.mark.parametrize("body", PASSING.values(), ids=PASSING)
def test_a_reported_error_is_paced_and_may_pass(
    body: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 0.1)
    service.play(Reply(body=body), Reply(body=body), answer("baker"))
    assert write(service.url, tmp_path) == ["baker"]
    gaps = [after - before for before, after in itertools.pairwise(service.times)]
    assert gaps[0] > 0.1
    assert gaps[1] > 0.2
    assert len(list(tmp_path.iterdir())) == 1  # what is no answer is not kept


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (PASSING["OpenRouter"], r"still answers 429 .* after \d tries; .*; it said, with .*Provider returned"),
        (PASSING["a text"], r"reports an error after \d tries; look at the server's log; it said, .* overloaded"),
        (PASSING["without choices"], r"reports an error after \d tries; .*; it said, with .*chat\.completion"),
        (PASSING["of a choice"], r"reports an error after \d tries; .*upstream"),
    ],
)  # fmt: skip
def test_a_reported_error_that_stays_is_told(body: str, message: str, service: Service, tmp_path: Path) -> None:
    service.play(Reply(body=body, headers=AT_ONCE))
    with pytest.raises(ServiceError, match=f"^{service.url}: {message}"):
        write(service.url, tmp_path)
    assert len(service.requests) in (3, 4)  # where the form may be at fault, once more without


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({"message": "Incorrect key", "code": "invalid_api_key"}, "refuses the key .*; it said, .*Incorrect key"),
        ({"message": "no", "type": "authentication_error"}, "refuses the key"),
        ({"message": "no", "code": 401}, "refuses the key"),
        ({"message": "The model `m` does not exist"}, "has no such address or model .*; it said, .*The model `m`"),
        ({"message": "no", "code": "model_not_found"}, "has no such address or model"),
        ("Unexpected endpoint or method.", "has no such address or model"),
        ({"message": "pay", "code": "insufficient_quota"}, "the quota is used up"),
    ],
)
def test_a_reported_error_that_stays_for_good_is_told_at_once(
    error: object, message: str, service: Service, tmp_path: Path
) -> None:
    service.play(Reply(body=json.dumps({"error": error})))
    with pytest.raises(ServiceError, match=message):
        write(service.url, tmp_path)
    assert len(service.requests) == 1


def test_a_reported_refusal_of_the_form_leads_to_a_simpler_one(service: Service, tmp_path: Path) -> None:
    refusal = Reply(body='{"error": {"message": "response_format is not supported", "code": 400}}')
    service.answer_with(lambda request: refusal if "response_format" in request else answer("baker"))
    assert write(service.url, tmp_path) == ["baker"]
    assert len(service.requests) == 3


def test_an_answer_beside_an_error_counts(service: Service, tmp_path: Path) -> None:
    document = json.loads(str(completion('{"subjects": ["baker"]}').body))
    document["error"] = {"message": "usage could not be counted"}
    service.play(Reply(body=json.dumps(document)))
    assert write(service.url, tmp_path) == ["baker"]
    assert len(service.requests) == 1


def test_a_reported_error_may_ask_for_patience(service: Service, tmp_path: Path) -> None:
    service.play(Reply(body=PASSING["OpenRouter"], headers={"Retry-After": "3600"}))
    with pytest.raises(ServiceError, match="asks to wait 3600 s"):
        write(service.url, tmp_path)
    assert len(service.requests) == 1
