"""Mutations of answers: wrapped in all that models and servers put around them, damaged, and served badly."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from llm_service import AT_ONCE, Reply

from mutations.answer_world import ASKED, SUBJECTS, TEXTS, AnswerWorld, Script, body
from mutations.editing import DEEP, DIGITS, HTML, cut
from mutations.judging import Counted, Equal, Kind, Mutant, Mutate, Refused

UNANSWERED = 7
DRAFT = json.dumps({"subjects": ["nun", "monk"]})
PROSE = (
    *("Sure! Here they are:", "A {set} of [three] trades:", "{}", "[1]", "{ subjects }", '"quoted" {', "]}", "1. ☺"),
    *("\n\n", "As an AI, I tried {x: 1} and [a]", "**Answer**", "> quoted\n", "JSON: {", "{subjects: [...]}", "\t"),
)
"""What is no JSON with texts, however it looks."""
Draw = Callable[[Random], str]


def _named_document(random: Random) -> Any:
    """The subjects under their name, wherever that is."""
    items: list[Any] = list(SUBJECTS)
    if random.random() < 0.3:
        name = random.choice(["subject", "name", "occupation"])
        items = [{name: subject} for subject in SUBJECTS]
    extra = {"theme": "work", "n": 3, "rejected": ["nun"], "notes": {"a": [1, 2]}, "ok": True, "next": None}
    names = random.sample(list(extra), random.randint(0, 4))
    fields = [("subjects", items), *((name, extra[name]) for name in names)]
    document: Any = dict(random.sample(fields, len(fields)))
    return random.choice([document, document, {"answer": document}, {"data": [document]}, [document]])


def _spelt(document: Any, random: Random) -> str:
    text = json.dumps(document, ensure_ascii=random.random() < 0.5, indent=random.choice([None, None, 1, "\t"]))
    return random.choice([text, text.replace("\n", "\r\n"), f"  {text}"])


def _named(random: Random) -> str:
    return _spelt(_named_document(random), random)


def _bare(random: Random) -> str:
    """Not as asked for, but nothing else can be meant."""
    subjects = list(SUBJECTS)
    lines = "\n".join(json.dumps({"subject": subject}) for subject in subjects)
    documents = [subjects, [{"subject": subject} for subject in subjects], {"occupations": subjects}]
    return random.choice([lines, *(_spelt(document, random) for document in documents)])


def _fenced(text: str, random: Random) -> str:
    return random.choice(["```json\n{}\n```", "```\n{}\n```", "~~~\n{}\n~~~", "```JSON {}```"]).replace("{}", text)


def _amid_prose(text: str, random: Random) -> str:
    return f"{random.choice(PROSE)} {text} {random.choice(PROSE)}"


def _twice(text: str, random: Random) -> str:
    return f"{text}\n{text}"


def _after_thoughts(text: str, random: Random) -> str:
    thought = random.choice([DRAFT, f"Perhaps {DRAFT}? No.", "Well {", '["nun"]', ""])
    marks = [
        *("<think>{}</think>", "<thinking>{}</thinking>", "<THOUGHTS>{}</THOUGHTS>", "{}</think>", "[THINK]{}[/THINK]"),
        "<reasoning>{}</reasoning>",
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    ]
    return random.choice(marks).replace("{}", thought) + random.choice(["", "\n\n"]) + text


WRAPS: dict[str, tuple[Callable[[str, Random], str], ...]] = {
    "as it is": (),
    "in a fence": (_fenced,),
    "amid prose": (_amid_prose,),
    "twice": (_twice,),
    "after thoughts": (_after_thoughts,),
    "in a fence amid prose": (_fenced, _amid_prose),
    "twice amid prose": (_twice, _amid_prose),
    "amid prose after thoughts": (_amid_prose, _after_thoughts),
    "all at once": (_fenced, _twice, _amid_prose, _after_thoughts),
}


def _part(text: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": text}


def _placed(text: str, random: Random) -> str:
    """In one of the places where servers put what a model says."""
    at = random.randint(0, len(text))
    thinking = {"type": "thinking", "thinking": [_part(f"Perhaps {DRAFT}?")]}
    places: list[dict[str, Any]] = [
        {"content": text},
        {"content": [_part(text)]},
        {"content": [_part(text[:at]), _part(text[at:], "output_text")]},
        {"content": [text]},
        {"content": [thinking, _part(text)]},
        {"content": [_part(DRAFT, "reasoning"), _part(text)]},
        {"content": text, "reasoning_content": DRAFT},
        {"content": text, "reasoning": "Hm.", "tool_calls": [], "annotations": None, "refusal": None},
        {"content": None, "reasoning_content": text},
        {"content": " \n", "reasoning": text},
        {"content": "", "thinking": text},
        {"content": text, "finish_reason": random.choice(["length", "eos", None])},
    ]
    return body(**random.choice(places))


def _around(answer: str, random: Random) -> str:
    """More in the body than is asked for."""
    document = json.loads(answer)
    more = {"usage": random.choice([None, {}, {"total_tokens": -1}]), "system_fingerprint": None, "timings": {"a": 1.5}}
    document |= {name: more[name] for name in random.sample(list(more), random.randint(0, 3))}
    if random.random() < 0.2:
        document["choices"].append(json.loads(body(DRAFT))["choices"][0])
    return json.dumps(document, indent=random.choice([None, 1]), ensure_ascii=random.random() < 0.5)


def _wrapped(draw: Draw, wrap: str, random: Random) -> str:
    text = draw(random)
    for step in WRAPS[wrap]:
        text = step(text, random)
    return _around(_placed(text, random), random)


def _wrapping(draw: Draw, wrap: str) -> Mutate:
    def mutate(world: AnswerWorld, random: Random, folder: Path) -> Mutant:
        return Mutant(_wrapped(draw, wrap, random), Equal(), world.raw)

    return mutate


def _cut_document(random: Random) -> str:
    return ASKED[: random.randint(1, len(ASKED) - 1)]


_BAD_CONTENTS = (
    *('{"subjects": "baker"}', '{"subjects": [1, 2]}', '{"subjects": {"a": "baker"}}', '{"subjects": [["baker"]]}'),
    *('{"subjects": ["baker", null]}', "[1, 2]", "{}", "null", "7", HTML, "baker, chef", "- baker\n- chef"),
    *('{"subjects": ["b\\ud800"]}', '{"a":' * 9000, f'{{"n": {DIGITS}}}', "subjects: [baker, chef]"),
    *("{'subjects': ['baker']}", '{"a": ["x"], "b": ["y"]}', '{"subject": 7, "subjects": "none"}'),
)
_THOUGHTS = ("I would say baker.", "Let me see: [1], {2}", "Hm")
_WITHOUT_CHOICES = ("{}", '{"choices": []}', '{"choices": null}', '{"error": "no"}')
"""Bodies of status 200 that stand for an error of the server."""
DAMAGES: dict[str, tuple[str, Draw]] = {
    "cut at the limit": ("truncated", lambda random: body(_cut_document(random), "length")),
    "cut among thoughts": (
        "truncated",
        lambda random: body(None, "length", reasoning_content=random.choice(_THOUGHTS)),
    ),
    "cut": ("not_json", lambda random: body(_cut_document(random))),
    "another content": ("not_json", lambda random: body(random.choice(_BAD_CONTENTS))),
    "no content": ("not_json", lambda random: body(random.choice([None, "", " \n", [], [None, 3], [{"type": []}]]))),
    "content of another type": ("not_json", lambda random: body(random.choice([7, True, {"subjects": ["baker"]}]))),
    "a tool in its place": (
        "not_json",
        lambda random: body(None, tool_calls=[{"function": {"name": "f", "arguments": ASKED}}]),
    ),
    "a refusal": ("refusal", lambda random: body(random.choice([None, ASKED]), refusal="I cannot.")),
    "a refusal in parts": ("refusal", lambda random: body([{"type": "refusal", "refusal": "No."}])),
    "a filter": ("refusal", lambda random: body(random.choice([None, ASKED, ""]), "content_filter")),
    "thoughts alone": (
        "in_reasoning",
        lambda random: random.choice(
            [
                body(None, reasoning_content=random.choice(_THOUGHTS)),
                body("", reasoning=random.choice(_THOUGHTS)),
                body(f"<think>{random.choice(_THOUGHTS)}</think>"),
                body([{"type": "thinking", "thinking": random.choice(_THOUGHTS)}]),
                body(f"<think>{random.choice(_THOUGHTS)}"),
            ]
        ),
    ),
    "no completion": (
        "not_json",
        lambda random: random.choice(
            ["", "[]", "null", '{"choices": [null]}', HTML, DEEP, '{"choices": [{"message": null}]}',
             f'{{"created": {DIGITS}}}', "data: {}"]
        ),
    ),
    "a body cut": ("not_json", lambda random: cut(body(ASKED).encode(), random).decode()),
}  # fmt: skip


def _damaged(name: str) -> Mutate:
    def mutate(world: AnswerWorld, random: Random, folder: Path) -> Mutant:
        reason, draw = DAMAGES[name]
        return Mutant(draw(random), Counted({reason: 1}), world.raw)

    return mutate


GOOD = Reply(body=body(ASKED))


def _served(draw: Callable[[Random], Script]) -> Mutate:
    return lambda world, random, folder: Mutant(draw(random), Equal(), world.served)


def _served_wrapped(random: Random) -> Script:
    return Script((Reply(body=_wrapped(random.choice([_named, _bare]), "as it is", random)),))


def _served_after_damage(world: AnswerWorld, random: Random, folder: Path) -> Mutant:
    """Unreadable answers are counted and asked for again."""
    reasons: dict[str, int] = {}
    replies = []
    for _ in range(random.randint(1, 2)):
        reason, draw = random.choice(list(DAMAGES.values()))
        replies.append(Reply(body=draw(random)))
        reasons[reason] = reasons.get(reason, 0) + 1
    return Mutant(Script((*replies, GOOD)), Counted((TEXTS, reasons)), world.served)


def _served_with_rejects(world: AnswerWorld, random: Random, folder: Path) -> Mutant:
    """Subjects that cannot be used are counted, whatever stands before and behind them."""
    bad = {
        "names_identity": ["male nurse", "young woman"],
        "several_people": ["two bakers", "miners"],
        "not_plain_words": ["b@ker", "12"],
        "too_long": ["very very very very very old tailor"],
        "duplicate": ["Baker", "bakers' baker"][:1],
        "held_out": ["engineer"],
    }
    reasons = random.sample(list(bad), random.randint(1, 4))
    subjects = [*SUBJECTS[:2], *(random.choice(bad[reason]) for reason in reasons), SUBJECTS[2]]
    reply = Reply(body=body(json.dumps({"subjects": subjects})))
    return Mutant(Script((reply,)), Counted((TEXTS, dict.fromkeys(reasons, 1))), world.served)


def _refused(draw: Callable[[Random], Script], names: str, code: int = UNANSWERED) -> Mutate:
    return lambda world, random, folder: Mutant(draw(random), Refused(code, names), world.served)


def _reported(code: object) -> Reply:
    return Reply(body=json.dumps({"error": {"message": "no", "code": code}}), headers=AT_ONCE)


def _error(status: int, message: str = "no", **fields: Any) -> Reply:
    return Reply(status=status, body=json.dumps({"error": {"message": message} | fields}), headers=AT_ONCE)


_OF_FORMS = (
    (400, "response_format is not supported"),
    (422, "extra fields not permitted: response_format"),
    (500, "failed to parse grammar"),
    (501, "not implemented"),
    (400, "json_schema is not allowed"),
    (503, "guided decoding is off"),
)


def _spoilt(folder: Path, content: str) -> None:
    for file in folder.glob("call-*.json"):
        file.write_text(content)


def _kept_damaged(world: AnswerWorld, random: Random, folder: Path) -> Mutant:
    content = random.choice(["", "[", "{}", '{"request": {}, "answer": 7}', HTML])
    script = Script((GOOD,), prepare=lambda answers: _spoilt(answers, content))
    return Mutant(script, Refused(3, "is damaged; delete that file"), world.kept)


SERVED: dict[str, Mutate] = {
    "wrapped": _served(_served_wrapped),
    "with a mark": _served(lambda random: Script((Reply(body=b"\xef\xbb\xbf" + body(ASKED).encode()),))),
    "after a reported error": _served(
        lambda random: Script((_reported(random.choice([429, 500, 502, "503", None])), GOOD))
    ),
    "after no choices": _served(
        lambda random: Script((Reply(body=random.choice(_WITHOUT_CHOICES), headers=AT_ONCE), GOOD))
    ),
    "after a pause": _served(lambda random: Script((_error(random.choice([429, 500, 502, 503, 408])), GOOD))),
    "after a broken connection": _served(lambda random: Script((dataclasses.replace(GOOD, is_cut=True), GOOD))),
    "in a simpler form": _served(
        lambda random: Script((*(_error(*random.choice(_OF_FORMS)) for _ in range(random.randint(1, 2))), GOOD))
    ),
    "after damage": _served_after_damage,
    "with rejects": _served_with_rejects,
    "damaged always": _refused(
        lambda random: Script((Reply(body=random.choice(list(DAMAGES.values()))[1](random)),)), "not the JSON asked for"
    ),
    "no key": _refused(lambda random: Script((_error(random.choice([401, 403])),)), "refuses the key"),
    "a wrong key": _refused(lambda random: Script((_error(400, "API key not valid"),)), "refuses the key"),
    "nobody of that name": _refused(lambda random: Script((_error(404),)), "no such address or model"),
    "no quota": _refused(lambda random: Script((_error(429, code="insufficient_quota"),)), "quota"),
    "down always": _refused(lambda random: Script((_error(random.choice([500, 502, 503, 429])),)), "after 2 tries|429"),
    "nobody listens": _refused(
        lambda random: Script((GOOD,), {"base_url": random.choice(["http://127.0.0.1:9/v1", "http://127.0.0.1:1"])}),
        "cannot be reached",
    ),
    "budget spent": _refused(
        lambda random: Script((Reply(body=random.choice(list(DAMAGES.values()))[1](random)),), {"max_calls": 1}),
        "max_calls|calls",
    ),
    "a key that can be none": _refused(
        lambda random: Script(
            (GOOD,), {"api_key_env": "A_KEY"}, {"A_KEY": random.choice(["schlüssel", "a\tb", "k\n1"])}
        ),
        "A_KEY",
        code=2,
    ),
    "kept answers damaged": _kept_damaged,
}
ANSWERS = Kind(
    "answers",
    AnswerWorld,
    {
        **{f"as asked for, {wrap}": _wrapping(_named, wrap) for wrap in WRAPS},
        # what stands alone is no part of prose that breaks off
        **{f"otherwise, {wrap}": _wrapping(_bare, wrap) for wrap in ("as it is", "in a fence", "after thoughts")},
        **{f"damage: {name}": _damaged(name) for name in DAMAGES},
        **{f"served: {name}": mutate for name, mutate in SERVED.items()},
    },
    n_commands=10,
)
