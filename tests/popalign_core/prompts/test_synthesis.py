"""LLM prompts against a real HTTP server that misbehaves, by the real openai client; in parallel: test_endpoint."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from llm_service import AT_ONCE, Reply, Service, answer, completion, serving

from popalign_core.config import Axis, LLMConfig, PromptsConfig
from popalign_core.errors import ConfigError, InputError, ServiceError
from popalign_core.prompts.checks import check_prompts
from popalign_core.prompts.synthesis import synthesise_prompts, theme_quotas

AXES = (Axis(name="gender", classes=("male", "female")), Axis(name="race", classes=("white", "black", "asian")))


@pytest.fixture
def service(monkeypatch) -> Iterator[Service]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


def config(url: str, n_train: int = 2, **llm: object) -> PromptsConfig:
    settings = {"max_retries": 2, "timeout_s": 10.0, "model": "m", "themes": ()} | llm
    return PromptsConfig(
        source="llm",
        n_train=n_train,
        train_subjects=("plumber",),
        eval_subjects=("engineer",),
        generic_subjects=("tree",),
        llm=LLMConfig(base_url=url, **settings),
    )


def wish(request: dict) -> str:
    return request["messages"][1]["content"]


def kept(folder) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_subjects_are_wrapped_in_the_carrier_and_the_rest_comes_from_the_configuration(service, tmp_path):
    service.play(answer("violin maker", "Otter keeper."))
    prompts, rejected = synthesise_prompts(config(service.url), AXES, tmp_path)
    assert prompts[["text", "kind", "split", "source"]].to_numpy().tolist() == [
        ["a photo of a violin maker", "neutral", "train", "llm:m"],
        ["a photo of an otter keeper", "neutral", "train", "llm:m"],
        ["a photo of an engineer", "neutral", "eval", "grammar"],
        ["a photo of a tree", "generic", "eval", "grammar"],
    ]
    assert len(rejected) == 0
    assert list(rejected.columns) == ["text", "reason"]
    check_prompts(prompts, AXES)


def test_the_request_asks_for_structured_json(service, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sesame")
    service.play(answer("baker", "welder"))
    synthesise_prompts(config(service.url, api_key_env="TEST_KEY", temperature=0.5), AXES, tmp_path)
    request = service.requests[0]
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["temperature"]) == ("m", 0.5)
    assert service.authorization == ["Bearer sesame"]
    schema = request["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["properties"]["subjects"]["items"] == {"type": "string"}
    assert schema["schema"]["required"] == ["subjects"]
    assert schema["schema"]["additionalProperties"] is False
    assert "Write 2 subjects." in request["messages"][1]["content"]
    assert "sesame" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_every_reject_has_its_reason_and_the_counts_add_up(service, tmp_path):
    first = (
        "baker",
        "Baker",
        "waitress",
        "two dancers",
        "engineer",
        "doctor #2",
        "one who does a great many things",
        "",
    )
    service.play(answer(*first), answer("welder", "diver"))
    calls = []
    prompts, rejected = synthesise_prompts(
        config(service.url), AXES, tmp_path, on_call=lambda *args: calls.append(args)
    )
    assert prompts["subject"].tolist()[:2] == ["baker", "welder"]
    assert rejected.to_numpy().tolist() == [
        ["Baker", "duplicate"],
        ["waitress", "names_identity"],
        ["two dancers", "several_people"],
        ["engineer", "held_out"],
        ["doctor #2", "not_plain_words"],
        ["one who does a great many things", "too_long"],
        ["", "not_plain_words"],
        ["diver", "surplus"],
    ]
    assert 2 + len(rejected) == len(first) + 2
    assert calls == [(1, 2), (2, 2)]
    assert "Write 1 subjects. Do not repeat any of these: baker." in service.requests[1]["messages"][1]["content"]


def test_large_orders_are_asked_for_in_batches(service, tmp_path):
    seconds = ("bra", "cre", "dri", "fro", "glu", "pla", "ske")
    names = [f"{first}{second} seller" for first in ("ka", "lo", "mi", "nu") for second in seconds]
    service.answer_with(lambda request: answer(*(names[:25] if "Write 25 " in wish(request) else names[25:])))
    prompts, _ = synthesise_prompts(config(service.url, n_train=28), AXES, tmp_path)
    assert sorted(wish(request)[:9] for request in service.requests) == ["Write 25 ", "Write 3 s"]
    assert prompts["subject"].tolist()[:28] == names


def test_themes_get_equal_shares_and_are_asked_for_what_they_lack(service, tmp_path):
    given = {"Write 2 subjects from the field of food.": ("baker", "waiters"), "food": ("brewer",)}
    given |= {"Write 1 subjects from the field of law.": ("notary", "bailiff")}
    service.answer_with(lambda request: answer(*given.get(wish(request), given["food"])))
    prompts, rejected = synthesise_prompts(config(service.url, n_train=3, themes=("food", "law")), AXES, tmp_path)
    assert prompts["subject"].tolist()[:3] == ["baker", "notary", "brewer"]
    assert rejected.to_numpy().tolist() == [["waiters", "several_people"], ["bailiff", "surplus"]]
    assert wish(service.requests[2]) == "Write 1 subjects from the field of food. Do not repeat any of these: baker."


def test_quotas_add_up():
    assert theme_quotas(300, [str(i) for i in range(20)]) == {str(i): 15 for i in range(20)}
    assert theme_quotas(7, ("a", "b", "c")) == {"a": 3, "b": 2, "c": 2}
    assert theme_quotas(5, ()) == {None: 5}


def test_people_together_are_asked_for_where_they_are_wanted(service, tmp_path):
    service.play(answer("couple on a beach", "two bakers"))
    together = config(service.url).model_copy(update={"one_person": False})
    prompts, _ = synthesise_prompts(together, AXES, tmp_path)
    assert prompts["subject"].tolist()[:2] == ["couple on a beach", "two bakers"]
    assert "pictures of people:" in service.requests[0]["messages"][0]["content"]


def test_near_duplicates_and_near_leaks_are_rejected(service, tmp_path):
    service.play(answer("firefighter", "fire fighter", "Engineer in a lab", "software engineer"))
    prompts, rejected = synthesise_prompts(config(service.url), AXES, tmp_path)
    assert prompts["subject"].tolist()[:2] == ["firefighter", "software engineer"]
    assert rejected.to_numpy().tolist() == [["fire fighter", "duplicate"], ["Engineer in a lab", "held_out"]]


def test_a_rerun_makes_no_call_and_gives_the_same_tables(service, tmp_path):
    service.play(completion("no JSON, sorry"), answer("baker", "nun"), answer("welder"))
    first = synthesise_prompts(config(service.url), AXES, tmp_path)
    assert len(service.requests) == 3
    service.play(Reply(500))
    second = synthesise_prompts(config(service.url), AXES, tmp_path)
    assert service.requests == []
    for before, after in zip(first, second, strict=True):
        assert before.to_json() == after.to_json()
    assert [document["request"]["model"] for document in kept(tmp_path)] == ["m", "m", "m"]


def test_a_partial_run_resumes_where_it_stopped(service, tmp_path):
    service.play(answer("baker"), answer("welder"), Reply(500, headers=AT_ONCE))
    with pytest.raises(ServiceError, match="answers HTTP 500 after 3 tries"):
        synthesise_prompts(config(service.url, n_train=3), AXES, tmp_path)
    assert len(service.requests) == 2 + 3
    service.play(answer("diver"))
    prompts, _ = synthesise_prompts(config(service.url, n_train=3), AXES, tmp_path)
    assert len(service.requests) == 1
    assert prompts["subject"].tolist()[:3] == ["baker", "welder", "diver"]


def test_the_key_of_a_kept_answer_is_its_request(service, tmp_path):
    service.play(answer("baker", "welder"))
    synthesise_prompts(config(service.url), AXES, tmp_path)
    synthesise_prompts(config(service.url, temperature=0.1), AXES, tmp_path)
    assert len(service.requests) == 2


def test_429_with_retry_after_is_waited_for_and_then_succeeds(service, tmp_path):
    service.play(Reply(429, "{}", {"Retry-After": "1"}), answer("baker", "welder"))
    prompts, _ = synthesise_prompts(config(service.url), AXES, tmp_path)
    assert prompts["subject"].tolist()[:2] == ["baker", "welder"]
    assert len(service.times) == 2
    assert 1.0 <= service.times[1] - service.times[0] < 5.0


def test_500_is_tried_again(service, tmp_path):
    service.play(Reply(500, headers=AT_ONCE), answer("baker", "welder"))
    prompts, _ = synthesise_prompts(config(service.url), AXES, tmp_path)
    assert prompts["subject"].tolist()[:2] == ["baker", "welder"]
    assert len(service.requests) == 2


@pytest.mark.parametrize(
    ("status", "n_requests", "message"),
    [
        (429, 3, r"still answers 429 \(too many requests\) after 3 tries; lower prompts\.llm\.requests_per_minute"),
        (500, 3, r"answers HTTP 500 after 3 tries: 'broken'; look at the server's log"),
        (401, 1, r"refuses the key \(HTTP 401\); put a valid one into \$OPENAI_API_KEY"),
        (404, 1, r"has no such address or model \(404, model 'm'\); correct prompts\.llm\.base_url or \.model"),
    ],
)
def test_a_refusing_service_is_named_with_what_to_do(service, tmp_path, status, n_requests, message):
    service.play(Reply(status, "broken", AT_ONCE))
    with pytest.raises(ServiceError, match=f"^{service.url}: {message}"):
        synthesise_prompts(config(service.url), AXES, tmp_path)
    assert len(service.requests) == n_requests
    assert kept(tmp_path) == []


def test_a_service_that_is_down_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    with pytest.raises(ServiceError, match=rf"^{url}: cannot be reached after 1 tries \(.*refused.*\); start"):
        synthesise_prompts(config(url, max_retries=0), AXES, tmp_path)


def test_a_slow_service_is_named(service, tmp_path):
    slow = answer("baker", "welder")
    slow.delay_s = 0.8
    service.play(slow)
    with pytest.raises(ServiceError, match=r"no answer within 0\.2 s after 1 tries; raise prompts\.llm\.timeout_s"):
        synthesise_prompts(config(service.url, max_retries=0, timeout_s=0.2), AXES, tmp_path)


UNREADABLE = [
    (Reply(body="<html>sign in</html>", headers={"Content-Type": "text/html"}), "not_json"),
    (Reply(body='{"choices": [{"mess'), "not_json"),
    (Reply(body="[1]"), "not_json"),
    (completion("Sure! Here are some: baker, welder"), "not_json"),
    (completion('{"occupations": ["baker"], "hobbies": ["diver"]}'), "not_json"),
    (completion('{"subjects": "baker"}'), "not_json"),
    (completion('{"subjects": ["baker", "wel', finish_reason="length"), "truncated"),
    (completion(None, refusal="I cannot help with that."), "refusal"),
    (completion(None, finish_reason="content_filter"), "refusal"),
    (completion(None, reasoning_content="I would say baker."), "in_reasoning"),
    (completion('{"subjects": ["ba\ud800ker"]}'), "not_json"),
    (Reply(body='{"created": ' + "9" * 5000 + "}"), "not_json"),
    (Reply(body="[" * 100_000), "not_json"),
]


@pytest.mark.parametrize(("reply", "reason"), UNREADABLE)
def test_an_unreadable_answer_is_kept_counted_and_asked_again(service, tmp_path, reply, reason):
    service.play(reply, answer("baker", "welder"))
    prompts, rejected = synthesise_prompts(config(service.url), AXES, tmp_path)
    assert prompts["subject"].tolist()[:2] == ["baker", "welder"]
    assert rejected.to_numpy().tolist() == [[reply.body[:200], reason]]
    documents = kept(tmp_path)
    assert [document["answer"] for document in documents if "reason" in document] == [reply.body]


@pytest.mark.parametrize(("reply", "reason"), [UNREADABLE[0], UNREADABLE[7], UNREADABLE[8]])
def test_only_unreadable_answers_end_the_run_and_do_not_poison_the_next(service, tmp_path, reply, reason):
    service.play(reply)
    with pytest.raises(ServiceError, match=rf"^{service.url}: model 'm' gave 3 answers in a row .*last: {reason}"):
        synthesise_prompts(config(service.url), AXES, tmp_path)
    assert len(service.requests) == 3
    service.play(answer("baker", "welder"))
    prompts, rejected = synthesise_prompts(config(service.url), AXES, tmp_path)
    assert prompts["subject"].tolist()[:2] == ["baker", "welder"]
    assert rejected["reason"].tolist() == [reason] * 3


def test_the_budget_of_calls_counts_those_of_earlier_runs_and_can_be_raised(service, tmp_path):
    service.play(answer("baker"), answer("baker"))
    spent = (
        r"1 of 2 usable prompts after max_calls = 2 calls; raise that limit and run again: the answers so far are kept"
    )
    for n_requests in (2, 2):
        with pytest.raises(ServiceError, match=spent):
            synthesise_prompts(config(service.url, max_calls=2), AXES, tmp_path)
        assert len(service.requests) == n_requests
    service.play(answer("welder"))
    prompts, rejected = synthesise_prompts(config(service.url, max_calls=3), AXES, tmp_path)
    assert len(service.requests) == 1
    assert prompts["subject"].tolist()[:2] == ["baker", "welder"]
    assert rejected["reason"].tolist() == ["duplicate"]


def test_a_damaged_kept_answer_is_named(service, tmp_path):
    service.play(answer("baker", "welder"))
    synthesise_prompts(config(service.url), AXES, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=rf"the kept answer {path} is damaged; delete that file"):
        synthesise_prompts(config(service.url), AXES, tmp_path)


def test_without_an_endpoint_there_is_nothing_to_ask(tmp_path):
    with pytest.raises(ConfigError, match=r"prompts\.llm is None"):
        synthesise_prompts(PromptsConfig(), AXES, tmp_path)


def test_importing_the_room_does_not_import_the_client():
    code = (
        "import sys, popalign_core.prompts.synthesis, popalign_core.preferences.set_pairs;"
        "print([name for name in ('openai', 'torch', 'prefect') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
