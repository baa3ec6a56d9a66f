"""Servers that know no response formats, and answers that are kept before they are read. A real server, real HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from llm_service import AT_ONCE, Reply, Service, answer, completion, serving
from pydantic import ValidationError

from popalign_core.config import Axis, LLMConfig, PromptsConfig
from popalign_core.errors import ConfigError, ServiceError
from popalign_core.prompts import endpoint, pacing
from popalign_core.prompts.synthesis import synthesise_prompts

AXES = (Axis(name="gender", classes=("male", "female")),)
THEMES = ("fielda", "fieldb", "fieldc")
ALL = [f"{theme} worker" for theme in THEMES]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 0.001)
    with serving() as server:
        yield server


def write(url: str, folder: Path, n_train: int = 3, **llm: object) -> list[str]:
    settings = {"max_retries": 2, "timeout_s": 10.0, "model": "m", "themes": THEMES[:n_train], "n_parallel": 1} | llm
    config = PromptsConfig(source="llm", n_train=n_train, llm=LLMConfig(base_url=url, **settings))
    return synthesise_prompts(config, AXES, folder)[0]["subject"].tolist()


def usual(request: dict) -> Reply:
    return answer(request["messages"][1]["content"].partition("field of ")[2].partition(".")[0] + " worker")


def form(request: dict) -> str | None:
    return request.get("response_format", {}).get("type")


def forms(service: Service) -> list[str | None]:
    return [form(request) for request in service.requests]


OWN_WORDS = {
    "llama.cpp, grammar": (500, '{"error": {"message": "Failed to initialize samplers: failed to parse grammar"}}'),
    "vLLM, guided decoding": (500, "guided_json is not supported by this backend"),
    "SGLang": (503, "xgrammar: unsupported JSON Schema keyword"),
    "OpenRouter": (404, '{"error": {"message": "No endpoints found that support structured outputs"}}'),
    "TGI": (422, '{"error": "Input validation error: `grammar` must be valid", "error_type": "validation"}'),
    "unimplemented": (501, ""),
    "without a word, 400": (400, "Bad Request"),
}


@pytest.mark.parametrize(("status", "words"), OWN_WORDS.values(), ids=OWN_WORDS)
def test_a_server_that_refuses_a_form_in_its_own_words_is_asked_more_simply(
    service: Service, tmp_path: Path, status: int, words: str
) -> None:
    service.answer_with(lambda request: Reply(status, words) if form(request) else usual(request))
    assert write(service.url, tmp_path) == ALL
    assert forms(service) == ["json_schema", "json_object", None, None, None]


@pytest.mark.parametrize(("max_retries", "n_tries"), [(0, 1), (1, 1), (2, 2), (4, 4)])
def test_a_server_that_fails_on_a_form_without_a_word_is_asked_plainly_at_last(
    service: Service, tmp_path: Path, max_retries: int, n_tries: int
) -> None:
    service.answer_with(lambda request: Reply(500, "oops", AT_ONCE) if form(request) else usual(request))
    assert write(service.url, tmp_path, max_retries=max_retries) == ALL
    assert forms(service) == ["json_schema"] * n_tries + [None] * 3  # remembered


def test_an_outage_that_passes_costs_no_form(service: Service, tmp_path: Path) -> None:
    service.answer_with(lambda request: Reply(500, "oops", AT_ONCE) if len(service.requests) == 1 else usual(request))
    assert write(service.url, tmp_path) == ALL
    assert forms(service) == ["json_schema"] * 4


@pytest.mark.parametrize(("status", "last"), [(500, None), (502, "json_schema")])
def test_an_outage_that_stays_is_reported_as_such(
    service: Service, tmp_path: Path, status: int, last: str | None
) -> None:
    service.play(Reply(status, "oops", AT_ONCE))
    with pytest.raises(ServiceError, match=rf"answers HTTP {status} after 3 tries: 'oops'; look at the server's log"):
        write(service.url, tmp_path)
    assert forms(service) == ["json_schema", "json_schema", last]


def test_an_outage_behind_a_refused_form_is_waited_for(service: Service, tmp_path: Path) -> None:
    """Its text names a schema too, but there is no simpler form left."""

    def respond(request: dict) -> Reply:
        if form(request) or len(service.requests) == 3:
            return Reply(500, "no schema", AT_ONCE)
        return usual(request)

    service.answer_with(respond)
    assert write(service.url, tmp_path) == ALL
    assert forms(service) == ["json_schema", "json_object", None, None, None, None]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "no key, no response_format"),
        (403, '{"error": {"message": "json_schema is not part of your plan"}}'),
        (400, '[{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}]'),
    ],
)
def test_a_refused_key_is_not_asked_again_in_another_form(
    service: Service, tmp_path: Path, status: int, words: str
) -> None:
    service.play(Reply(status, words))
    with pytest.raises(ServiceError, match=rf"refuses the key \(HTTP {status}\); put a valid one into"):
        write(service.url, tmp_path)
    assert forms(service) == ["json_schema"]


@pytest.mark.parametrize("key", ["schlüssel", "sesame\nsesame", "日本", "\udcff"])
def test_a_key_that_can_be_none_is_refused_and_not_printed(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match=r"^\$OPENAI_API_KEY holds a key with characters that no key has; copy it"):
        write(service.url, tmp_path)
    assert service.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "http://",
        "http://h:x/v1",
        "http://[::1",
        "http://h\x00/v1",
        f"http://{'a' * 64}/v1",
        "ftp://h",
    ],
)
def test_an_address_that_can_be_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match=r"base_url\n.* is not an address \(.*\); write for example http://127"):
        LLMConfig(base_url=url)
    assert LLMConfig(base_url=" http://[::1]:8000/v1\n").base_url == "http://[::1]:8000/v1"


def names(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[2] for path in folder.iterdir())


def test_an_answer_is_on_disk_before_it_is_read(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(answer: str) -> list[str]:
        raise AssertionError(answer)

    service.answer_with(usual)
    with monkeypatch.context() as patch:
        patch.setattr(endpoint, "read_subjects", stumble)
        with pytest.raises(AssertionError, match="fielda worker"):
            write(service.url, tmp_path, n_train=1)
    assert names(tmp_path) == ["json"]
    assert write("http://127.0.0.1:9/v1", tmp_path, n_train=1) == ALL[:1]
    assert len(service.requests) == 1


def test_a_kill_before_an_answer_is_set_aside_counts_it_once(service: Service, tmp_path: Path) -> None:
    service.play(completion("no"), completion("never"), completion("still no"))
    with pytest.raises(ServiceError, match=r"content holds no .*; the raw answers are in"):
        write(service.url, tmp_path, n_train=1)
    assert names(tmp_path) == [f"unreadable-000{number}.json" for number in range(3)]
    last = max(tmp_path.iterdir())
    last.rename(last.with_name(last.name.replace(".unreadable-0002", "")))
    service.answer_with(usual)
    assert write(service.url, tmp_path, n_train=1, max_calls=4) == ALL[:1]
    assert len(service.requests) == 1
    assert names(tmp_path) == ["json", *(f"unreadable-000{number}.json" for number in range(3))]


def test_what_an_earlier_version_could_not_read_is_not_paid_for_again(service: Service, tmp_path: Path) -> None:
    service.play(completion("no"), answer("baker"))
    assert write(service.url, tmp_path, n_train=1) == ["baker"]
    path = next(path for path in tmp_path.iterdir() if "unreadable" not in path.name)
    document = json.loads(path.read_text()) | {"reason": "not_json"}
    path.with_suffix(".unreadable-0001.json").write_text(json.dumps(document))
    path.unlink()
    assert write("http://127.0.0.1:9/v1", tmp_path, n_train=1) == ["baker"]
    assert names(tmp_path) == ["json", "unreadable-0000.json"]


BODIES = {
    "not UTF-8": (b'{"choices": [{"message": {"content": "\xff\xed\xa0\x80 {\\"subjects\\": [\\"baker\\"]}"}}]}', {}),
    "byte order mark": (b'\xef\xbb\xbf{"choices": [{"message": {"content": "[\\"baker\\"]"}}]}', {}),
    "named otherwise": (
        answer("baker").body.encode(),
        {"Content-Type": "application/json; charset=utf-7"},
    ),
}


@pytest.mark.parametrize(("body", "headers"), BODIES.values(), ids=BODIES)
def test_the_bytes_of_an_answer_are_read_as_utf_8(
    service: Service, tmp_path: Path, body: bytes, headers: dict[str, str]
) -> None:
    service.play(Reply(body=body, headers=headers))
    assert write(service.url, tmp_path, n_train=1) == ["baker"]
