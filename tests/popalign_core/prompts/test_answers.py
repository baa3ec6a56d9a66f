"""What is read in a raw chat completion: where servers put the text, and what is wrong with the rest, by name."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popalign_core.errors import InputError
from popalign_core.prompts.answers import UnreadableError, count_tokens, keep, load_kept, read_subjects

SUBJECTS = ["baker", "diver in a lake"]
ASKED = json.dumps({"subjects": SUBJECTS})
DRAFT = json.dumps({"subjects": ["nun"]})


def body(finish_reason: str = "stop", **message: Any) -> str:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant"} | message}
    return json.dumps({"object": "chat.completion", "choices": [choice]})


def part(text: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": text}


MISTRAL = {"type": "thinking", "thinking": [part(f"Perhaps {DRAFT}?")]}

READ = {
    "thinking, then text": body(content=[MISTRAL, part(ASKED)]),
    "text in two parts": body(content=[part(ASKED[:9]), part(ASKED[9:])]),
    "texts without parts": body(content=[ASKED]),
    "reasoning part": body(content=[part(DRAFT, "reasoning"), part(ASKED, "output_text")]),
    "only a thinking part": body(content=[{"type": "thinking", "thinking": ASKED}]),
    "reasoning_content": body(content=None, reasoning_content=ASKED),
    "reasoning_content, content blank": body(content=" \n", reasoning_content=f"Let me see. {ASKED}"),
    "reasoning": body(content="", reasoning=ASKED),
    "tags in reasoning": body(content=None, reasoning=f"<think>{DRAFT}</think>{ASKED}"),
    "both": body(content=ASKED, reasoning_content=DRAFT),
    "tags": body(content=f"<think>{DRAFT}</think>\n{ASKED}"),
    "tag that was begun in the request": body(content=f"Perhaps {DRAFT}\n</think>\n\n{ASKED}"),
    "tag that never ends": body(content=f"<think>\n{ASKED}"),
    "tag with nothing behind": body(content=f"<thinking>{ASKED}</thinking>\n"),
    "brackets of Magistral": body(content=f"[THINK]{DRAFT}[/THINK]{ASKED}"),
    "channels of gpt-oss": body(
        content=f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{ASKED}"
    ),
    "whole, though it ends at the limit": body(content=ASKED, finish_reason="length"),
}


@pytest.mark.parametrize("answer", READ.values(), ids=READ)
def test_the_subjects_are_read_where_the_server_put_them(answer: str) -> None:
    assert read_subjects(answer) == SUBJECTS


NESTED = 100_000
UNREADABLE = {
    "nothing": ("", "not_json", "the answer cannot be read as JSON: Expecting value"),
    "no choices": ('{"choices": []}', "not_json", "the answer has no choices, so it is not a chat completion"),
    "choices null": ('{"choices": null, "error": {}}', "not_json", "the answer has no choices, so it is not a chat"),
    "choices by name": ('{"choices": {"0": {}}}', "not_json", "the answer has no choices, so it is not a chat"),
    "choice null": ('{"choices": [null]}', "not_json", "the first choice of the answer has no message"),
    "message null": ('{"choices": [{"message": null}]}', "not_json", "the first choice of the answer has no message"),
    "message a text": ('{"choices": [{"message": "x"}]}', "not_json", "the first choice of the answer has no message"),
    "list": ("[1]", "not_json", "the answer has no choices"),
    "OpenRouter's error": (
        '{"error": {"message": "Provider returned error", "code": 429}}',
        "not_json",
        "the service reports an error with status 200, .*Provider returned error",
    ),
    "LM Studio's error": (
        '{"error": "Unexpected endpoint or method."}',
        "not_json",
        "the service reports an error with status 200, 'Unexpected endpoint",
    ),
    "error of a choice": (
        '{"choices": [{"message": {"content": ""}, "error": {"message": "upstream", "code": 502}}]}',
        "not_json",
        "the service reports an error with status 200, .*upstream",
    ),
    "page": (
        "<!DOCTYPE html><title>Log in</title>",
        "not_json",
        "is a web page, not a completion; correct prompts.llm",
    ),
    "stream": (
        'data: {"choices": []}\n\ndata: [DONE]\n',
        "not_json",
        "is a stream of events, though none was asked for",
    ),
    "nested body": ("[" * NESTED, "not_json", "the answer cannot be read as JSON: maximum recursion depth"),
    "integer in the body": (
        f'{{"created": {"9" * 5000}, "choices": [{{"message": {{"content": "x"}}}}]}}',
        "not_json",
        r"the answer cannot be read as JSON: Exceeds the limit \(4300 digits\)",
    ),
    "content null": (body(content=None), "not_json", "content is empty"),
    "content of no parts": (body(content=[]), "not_json", "content is empty"),
    "content a number": (body(content=7), "not_json", "content is of type int, not text"),
    "content an object": (body(content={"subjects": ["baker"]}), "not_json", "content is of type dict, not text"),
    "parts of other kinds": (body(content=[None, 3, {"type": []}, [ASKED]]), "not_json", "content is empty"),
    "nested content": (body(content='{"a":' * NESTED), "not_json", "content holds no"),
    "integer in the content": (body(content=f'{{"n": {"9" * 5000}}}'), "not_json", "content holds no"),
    "half a character": (body(content='{"subjects": ["b\ud800"]}'), "not_json", "content holds no"),
    "tool calls": (
        body(content=None, tool_calls=[{"function": {"name": "f", "arguments": ASKED}}]),
        "not_json",
        "the model calls tools in place of giving a content",
    ),
    "refusal": (body(content=None, refusal="I cannot."), "refusal", "the model or the service refuses"),
    "refusal part": (body(content=[{"type": "refusal", "refusal": "No."}]), "refusal", "the model or the service"),
    "filter": (body(content=ASKED, finish_reason="content_filter"), "refusal", "the model or the service refuses"),
    "cut": (body(content=ASKED[:-9], finish_reason="length"), "truncated", "breaks off at the limit of tokens; raise"),
    "cut while thinking": (
        body(content=None, reasoning_content="Let me", finish_reason="length"),
        "truncated",
        "breaks off at the limit of tokens while the model still thinks; raise",
    ),
    "thoughts alone": (
        body(content=None, reasoning_content="I would say baker."),
        "in_reasoning",
        "content is empty, the server put the text into reasoning_content; turn off",
    ),
    "tags alone": (
        body(content="<think>I would say baker.</think>"),
        "in_reasoning",
        "content is empty, the server put the text into tags of thinking; turn off",
    ),
    "thoughts that fit, then prose": (body(content=f"<think>{ASKED}</think>Sorry."), "not_json", "content holds no"),
}


@pytest.mark.parametrize(("answer", "reason", "explanation"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_wrong_with_an_answer_is_said(answer: str, reason: str, explanation: str) -> None:
    with pytest.raises(UnreadableError, match=explanation) as caught:
        read_subjects(answer)
    assert caught.value.reason == reason


@pytest.mark.parametrize("counted", ["9" * 5000, "9" * 4000, "-3", "0", '"12"', "null", "1.5", "[" * NESTED])
def test_a_count_that_cannot_be_is_estimated(counted: str) -> None:
    answer = f'{{"usage": {{"total_tokens": {counted}}}}}'
    assert count_tokens({}, answer) == (2 + len(answer)) // 3


@pytest.mark.parametrize(
    "content", ["", "[", "[]", "null", '{"request": {}, "answer": 7}', '{"request": 1, "answer": ""}', "[" * NESTED]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "call-0000-x.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"the kept answer {path} is damaged; delete that file"):
        load_kept(path)


def test_an_answer_is_kept_as_it_came(tmp_path: Path) -> None:
    path, answer = tmp_path / "call-0000-x.json", "\x00 \u2028 \r\n 🙂 �"
    keep(path, {"model": "m"}, answer)
    assert load_kept(path).answer == answer
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


word = st.text("abcdefghijklmnopqrstuvwxyz éß-'{}[]\"\\,:", min_size=1).filter(lambda text: any(map(str.isalpha, text)))
prose = st.sampled_from(["", "Sure!", "A {set} of [three] trades:", "{}", "[1]", "{ subjects }", '"quoted" {', "]}"])


@st.composite
def contents(draw: st.DrawFn) -> tuple[list[str], str]:
    """Subjects, and a text that holds them as asked for amid noise."""
    subjects = draw(st.lists(word, min_size=1, max_size=5))
    extra = draw(st.dictionaries(st.sampled_from(["theme", "n", "rejected"]), st.just(["nun"]) | st.integers() | word))
    document = draw(st.permutations([*extra.items(), ("subjects", subjects)]))
    spelt = json.dumps(dict(document), ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1)))
    fenced = draw(st.sampled_from(["{}", "```json\n{}\n```", "```\n{}```"])).replace("{}", spelt)
    doubled = draw(st.sampled_from([fenced, f"{fenced}\n{fenced}"]))
    thought = draw(st.sampled_from(["", f"<think>{DRAFT}</think>", "[THINK]Well {[/THINK]", "Well.</think>"]))
    return subjects, f"{thought}{draw(prose)} {doubled} {draw(prose)}"


def in_some_place(draw: st.DrawFn, content: str) -> str:
    places = [{"content": content}, {"content": [MISTRAL, part(content)]}, {"content": "", "reasoning": content}]
    return body(**draw(st.sampled_from(places)))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_subjects_come_back_out_of_noise(data: st.DataObject) -> None:
    subjects, content = data.draw(contents())
    assert read_subjects(in_some_place(data.draw, content)) == subjects


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_mutated_answer_is_read_or_unreadable(data: st.DataObject) -> None:
    _, content = data.draw(contents())
    raw = bytearray(in_some_place(data.draw, content).encode())
    pieces = st.binary(max_size=4) | st.sampled_from([b'"', b"{", b"]", b"\\ud800", b"9" * 5000, b"[" * 2000, b"null"])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 9))] = data.draw(pieces)
    answer = raw.decode(errors="replace")
    assert count_tokens({}, answer) >= 0
    with suppress(UnreadableError):
        "".join(read_subjects(answer)).encode()
