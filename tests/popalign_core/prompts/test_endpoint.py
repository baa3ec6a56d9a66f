"""Many calls at once to a service that misbehaves: pace, patience, budgets, forms, kills. A real server, real HTTP."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from llm_service import AT_ONCE, Reply, Service, answer, completion, serving

from popalign_core.config import Axis, LLMConfig, PromptsConfig
from popalign_core.errors import ServiceError
from popalign_core.prompts import pacing
from popalign_core.prompts.synthesis import synthesise_prompts

AXES = (Axis(name="gender", classes=("male", "female")),)
THEMES = tuple(f"field{letter}" for letter in "abcdefgh")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


def config(url: str, n_train: int = len(THEMES), **llm: object) -> PromptsConfig:
    settings = {"max_retries": 2, "timeout_s": 10.0, "model": "m", "themes": THEMES, "n_parallel": 4} | llm
    return PromptsConfig(source="llm", n_train=n_train, llm=LLMConfig(base_url=url, **settings))


def theme(request: dict) -> str:
    return request["messages"][1]["content"].partition("field of ")[2].partition(".")[0]


def subject(request: dict) -> str:
    """Another one for every theme and batch size; no two alike."""
    wish = request["messages"][1]["content"]
    return f"{theme(request)} worker{'' if 'repeat' not in wish else ' again' * wish.count(',') + ' once more'}"


def write(url: str, folder: Path, **llm: object) -> list[str]:
    return synthesise_prompts(config(url, **llm), AXES, folder)[0]["subject"].tolist()


def usual(request: dict) -> Reply:
    return answer(subject(request), n_tokens=100)


PROCESS = (
    "import pathlib, sys; from popalign_core.config import *; from popalign_core.prompts.synthesis import *;"
    "synthesise_prompts(PromptsConfig.model_validate_json(sys.argv[1]), [Axis(name='gender', classes=('male',"
    " 'female'))], pathlib.Path(sys.argv[2]))"
)
ALL = [f"{name} worker" for name in THEMES]


def test_the_order_in_which_answers_arrive_does_not_matter(service: Service, tmp_path: Path) -> None:
    def respond(request: dict) -> Reply:
        # every theme offers the same three, so who is taken first decides about everybody
        reply = answer("baker", "brewer", "welder", subject(request), "again", subject(request) + " too")
        reply.delay_s = (0.12, 0.0, 0.06, 0.03, 0.09)[len(service.requests) % 5]
        return reply

    service.answer_with(respond)
    tables = [
        synthesise_prompts(config(service.url, n_train=24, n_parallel=n), AXES, tmp_path / str(n)) for n in (1, 3, 8)
    ]
    assert tables[0][0]["subject"].tolist()[:6] == [
        "baker",
        "brewer",
        "welder",
        "fieldb worker",
        "again",
        "fieldb worker too",
    ]
    assert len(tables[0][1]) > 20
    for prompts, rejected in tables[1:]:
        assert prompts.to_json() == tables[0][0].to_json()
        assert rejected.to_json() == tables[0][1].to_json()


def test_as_many_calls_as_configured_are_under_way(service: Service, tmp_path: Path) -> None:
    def slow(request: dict) -> Reply:
        return answer(subject(request), delay_s=0.2)

    service.answer_with(slow)
    assert write(service.url, tmp_path, n_parallel=4) == ALL
    assert service.most_open == 4
    assert service.times[-1] - service.times[0] < 7 * 0.2


def test_the_rate_limit_holds_over_all_calls_and_retries(service: Service, tmp_path: Path) -> None:
    def respond(request: dict) -> Reply:
        return Reply(500, headers=AT_ONCE) if len(service.requests) == 2 else usual(request)

    service.answer_with(respond)
    assert write(service.url, tmp_path, requests_per_minute=300, n_parallel=8) == ALL
    assert len(service.times) == 9
    assert service.times[-1] - service.times[0] > 1.0  # 8 gaps of 0.2 s, less what the first took to the server


def test_one_retry_after_holds_all_calls(service: Service, tmp_path: Path) -> None:
    def respond(request: dict) -> Reply:
        if len(service.requests) == 1:
            return Reply(429, "{}", {"Retry-After": "1"})
        return answer(subject(request), delay_s=0.2)  # so that the refusal is read first

    service.answer_with(respond)
    assert write(service.url, tmp_path, n_parallel=2) == ALL
    early = [at for at in service.times[1:] if at - service.times[0] < 0.95]
    assert len(early) <= 1  # the one that was under way


def test_retry_after_may_be_a_date(service: Service, tmp_path: Path) -> None:
    def respond(request: dict) -> Reply:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return Reply(503, "{}", {"Retry-After": date}) if len(service.requests) == 1 else answer("baker")

    service.answer_with(respond)
    assert write(service.url, tmp_path, themes=(), n_train=1) == ["baker"]
    assert service.times[1] - service.times[0] > 0.9  # a date has whole seconds; the back-off would be 0.5 s


def test_more_patience_than_is_sensible_is_left_to_a_later_run(service: Service, tmp_path: Path) -> None:
    service.play(Reply(429, "{}", {"Retry-After": "3600"}))
    with pytest.raises(ServiceError, match=r"asks to wait 3600 s \(HTTP 429\); the answers so far are kept: run again"):
        write(service.url, tmp_path, themes=(), n_train=1)
    assert len(service.requests) == 1


def test_a_used_up_quota_is_not_asked_again(service: Service, tmp_path: Path) -> None:
    body = json.dumps({"error": {"code": "insufficient_quota", "message": "pay", "type": "insufficient_quota"}})
    service.play(Reply(429, body))
    with pytest.raises(ServiceError, match=r"quota is used up \(429 insufficient_quota\)"):
        write(service.url, tmp_path, themes=(), n_train=1)
    assert len(service.requests) == 1


@pytest.mark.parametrize("header", [{}, {"Retry-After": "0"}, {"Retry-After": "soon"}, {"Retry-After": "nan"}])
def test_without_a_wish_of_the_service_the_wait_doubles(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: dict[str, str]
) -> None:
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 0.1)
    service.play(Reply(503, "{}", header), Reply(502, "{}", header), answer("baker"))
    assert write(service.url, tmp_path, themes=(), n_train=1) == ["baker"]
    gaps = [after - before for before, after in itertools.pairwise(service.times)]
    assert gaps[0] > 0.1
    assert gaps[1] > 0.2


def test_the_wait_has_an_end() -> None:
    assert [pacing.backoff_s(n) for n in (1, 2, 3, 8, 2000)] == [0.5, 1.0, 2.0, 60.0, 60.0]


def test_a_connection_that_breaks_in_the_middle_of_an_answer_is_tried_again(service: Service, tmp_path: Path) -> None:
    broken = answer("baker")
    broken.is_cut = True
    service.play(broken, answer("welder"))
    assert write(service.url, tmp_path, themes=(), n_train=1) == ["welder"]
    assert len(service.requests) == 2


def test_calls_in_parallel_do_not_overrun_the_tokens(service: Service, tmp_path: Path) -> None:
    service.answer_with(lambda request: answer(subject(request), n_tokens=100, delay_s=0.05))
    message = r"4 of 8 usable prompts after 400 of max_tokens_total = 450 tokens \(the largest answer took 100\); raise"
    with pytest.raises(ServiceError, match=message):
        write(service.url, tmp_path, max_tokens_total=450, n_parallel=8)
    assert len(service.requests) == 4
    with pytest.raises(ServiceError, match=message):  # an earlier run's tokens are spent too
        write(service.url, tmp_path, max_tokens_total=450)
    assert len(service.requests) == 4
    assert write(service.url, tmp_path, max_tokens_total=800) == ALL
    assert len(service.requests) == 8


def test_a_service_that_does_not_count_is_estimated_by_length(service: Service, tmp_path: Path) -> None:
    service.answer_with(lambda request: answer(subject(request)))
    with pytest.raises(ServiceError, match=r"4 of 8 usable prompts after 9\d\d of max_tokens_total = 1000 tokens"):
        write(service.url, tmp_path, max_tokens_total=1000)


def test_unreadable_answers_cost_tokens_too(service: Service, tmp_path: Path) -> None:
    service.play(completion("no", n_tokens=60), answer("baker", n_tokens=60))
    with pytest.raises(ServiceError, match="0 of 1 usable prompts after 60 of max_tokens_total = 100 tokens"):
        write(service.url, tmp_path, themes=(), n_train=1, max_tokens_total=100)


REFUSALS = {
    "vLLM": Reply(400, '{"object": "error", "message": "response_format is not supported", "code": 400}'),
    "llama.cpp": Reply(500, '{"error": {"message": "response_format type must be one of text or json_object"}}'),
    "unnamed": Reply(422, "unprocessable"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("accepted", ["json_object", None])
def test_a_server_without_structured_output_is_asked_more_simply(
    service: Service, tmp_path: Path, refusal: Reply, accepted: str | None
) -> None:
    def respond(request: dict) -> Reply:
        return usual(request) if request.get("response_format", {}).get("type") == accepted else refusal

    service.answer_with(respond)
    assert write(service.url, tmp_path, n_parallel=1) == ALL
    forms = [request.get("response_format", {}).get("type") for request in service.requests]
    tried = ["json_schema", "json_object", None]
    assert forms == tried[: tried.index(accepted)] + [accepted] * 8  # refused once, not once a call
    assert write(service.url, tmp_path) == ALL
    assert len(service.requests) == len(forms)


def test_a_request_that_no_form_helps_is_reported(service: Service, tmp_path: Path) -> None:
    service.play(Reply(400, '{"error": {"message": "unknown parameter temperature"}}'))
    with pytest.raises(ServiceError, match=r"answers HTTP 400 at once: '.*unknown parameter temperature"):
        write(service.url, tmp_path, n_parallel=1)
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    "content",
    [
        '```json\n{"subjects": ["baker"]}\n```',
        'Sure! Here you are: {"subjects": ["baker"]} Enjoy.',
        '<think>{"subjects": ["no"]} is too short</think>\n{"subjects": ["baker"]}',
    ],
)
def test_what_servers_without_structured_output_put_around_the_json_is_taken_off(
    service: Service, tmp_path: Path, content: str
) -> None:
    service.play(completion(content))
    assert write(service.url, tmp_path, themes=(), n_train=1) == ["baker"]


def test_an_answer_that_drips_is_not_waited_for(service: Service, tmp_path: Path) -> None:
    service.play(replace(answer("baker"), pause_s=0.05))  # 200 bytes would take 10 s
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"no answer within 0\.5 s after 1 tries; raise prompts\.llm\.timeout_s"):
        write(service.url, tmp_path, themes=(), n_train=1, timeout_s=0.5, max_retries=0)
    assert time.monotonic() - start < 5


def test_an_answer_that_unpacks_into_gigabytes_is_cut(service: Service, tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)  # gzip
    bomb = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(64)) + packer.flush()
    service.play(Reply(body=bomb, headers={"Content-Encoding": "gzip"}), answer("baker"))
    assert write(service.url, tmp_path, themes=(), n_train=1) == ["baker"]
    (kept,) = tmp_path.glob("*.unreadable-*.json")
    assert len(json.loads(kept.read_text())["answer"]) == 1 << 24


def test_a_call_that_fails_stops_the_others_and_what_is_under_way_is_kept(service: Service, tmp_path: Path) -> None:
    def respond(request: dict) -> Reply:
        if theme(request) == "fieldc":
            return Reply(401, "no")
        return answer(subject(request), delay_s=0.3)

    service.answer_with(respond)
    with pytest.raises(ServiceError, match=r"refuses the key \(HTTP 401\)"):
        write(service.url, tmp_path)
    n_asked = len(service.requests)
    assert n_asked <= 5  # four under way, and at most one that began before the failure was known
    assert len(list(tmp_path.glob("call-*.json"))) == n_asked - 1
    service.answer_with(usual)
    assert write(service.url, tmp_path) == ALL
    assert len(service.requests) == 8 - (n_asked - 1)


def test_another_address_for_the_same_model_pays_nothing_twice(service: Service, tmp_path: Path) -> None:
    service.answer_with(usual)
    assert write(service.url, tmp_path) == ALL
    assert write("http://127.0.0.1:9/v1", tmp_path) == ALL


def test_a_kill_with_several_calls_under_way_costs_those_alone(service: Service, tmp_path: Path) -> None:
    first = set(THEMES[:3])
    service.answer_with(lambda request: answer(subject(request), delay_s=0.0 if theme(request) in first else 60.0))
    folder = tmp_path / "answers"
    settings = config(service.url).model_dump_json()
    worker = subprocess.Popen([sys.executable, "-c", PROCESS, settings, str(folder)])
    deadline = time.monotonic() + 60
    while len(list(folder.glob("call-*.json"))) < 3 or len(service.requests) < 7:
        assert time.monotonic() < deadline
        assert worker.poll() is None
        time.sleep(0.02)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    paid = {path.name: path.read_bytes() for path in folder.glob("call-*.json")}
    assert len(paid) == 3
    service.answer_with(usual)
    assert write(service.url, folder) == ALL
    assert len(service.requests) == 8 - 3
    assert {name: (folder / name).read_bytes() for name in paid} == paid


def test_an_interrupt_keeps_what_is_under_way(service: Service, tmp_path: Path) -> None:
    service.answer_with(lambda request: answer(subject(request), delay_s=0.5))
    settings = config(service.url, n_parallel=2).model_dump_json()
    worker = subprocess.Popen(
        [sys.executable, "-c", PROCESS, settings, str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    while len(service.requests) < 2:
        assert worker.poll() is None
        time.sleep(0.01)
    worker.send_signal(signal.SIGINT)
    _, errors = worker.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert len(service.requests) == 2
    assert len(list(tmp_path.glob("call-*.json"))) == 2
