"""JSON somewhere in what a language model wrote: what is found, and that nothing takes long."""

import json
import time

import pytest

from popalign_core.prompts.loose_json import find_subjects

SUBJECTS = ["baker", "diver in a lake"]
ASKED = json.dumps({"subjects": SUBJECTS})

READ = {
    "as asked": ASKED,
    "twice": f"{ASKED}\n{ASKED}",
    "another object first": f'{{"theme": "trades"}} {ASKED}',
    "another object after": f'{ASKED} {{"subjects": ["nun"]}}',
    "brace of prose before": f"A set {{of trades}} as you asked: {ASKED}",
    "brace of prose after": f"{ASKED} I left {{others}} out.",
    "code before": f"Schema: {{ subjects: string[] }}\n```json\n{ASKED}\n```",
    "broken off, then whole": f'{{"subjects": ["bak\n\nOnce more: {ASKED}',
    "example first": f'Form: {{"subjects": ["...", "..."]}}. Answer: {ASKED}',
    "empty first": f'{{"subjects": []}} {ASKED}',
    "list of the refused first": f'Not allowed: ["nun", "monk"]. {ASKED}',
    "more keys": json.dumps({"theme": "trades", "rejected": ["nun"], "subjects": SUBJECTS, "n": 2}),
    "deeper": json.dumps({"status": "ok", "result": [{"subjects": SUBJECTS}]}),
    "bare list": json.dumps(SUBJECTS),
    "bare list in a fence": f"```\n{json.dumps(SUBJECTS, indent=2)}\n```",
    "objects": json.dumps({"subjects": [{"subject": name, "theme": "trades"} for name in SUBJECTS]}),
    "objects with another name": json.dumps({"subjects": [{"name": name} for name in SUBJECTS]}),
    "bare objects": json.dumps([{"id": n, "subject": name} for n, name in enumerate(SUBJECTS)]),
    "one object a line": "\n".join(json.dumps({"subject": name, "tags": ["x"]}) for name in SUBJECTS),
    "another key": json.dumps({"theme": "trades", "occupations": SUBJECTS}),
}
NOT_READ = {
    "prose": "Sure: baker and welder",
    "Python": "{'subjects': ['baker']}",
    "two other keys": '{"occupations": ["baker"], "hobbies": ["diver"]}',
    "one text": '{"subjects": "baker"}',
    "one text beside a list": '{"subjects": "baker", "tags": ["food"]}',
    "numbers": '{"subjects": [1, 2]}',
    "a number among them": '{"subjects": ["baker", 7, "welder"]}',
    "null among them": '{"subjects": ["baker", null]}',
    "broken off": '{"subjects": ["baker", "wel',
    "broken off after a list": '{"rejected": ["nun"], "subj',
    "objects, broken off": '[{"subject": "baker"}, {"subject": "wel',
    "error": '{"error": "no model"}',
    "no letters": '["...", "..."]',
    "empty list": "[]",
    "half a character": '{"subjects": ["baker", "ro\\ud83dofer"]}',
    "integer of 5,000 digits": f'{{"n": {"9" * 5000}, "subjects": 7}}',
}


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_the_first_json_that_fits_is_read(text: str) -> None:
    assert find_subjects(text) == SUBJECTS


@pytest.mark.parametrize("text", NOT_READ.values(), ids=NOT_READ)
def test_what_does_not_fit_is_not_read(text: str) -> None:
    assert find_subjects(text) is None


def test_an_answer_without_subjects_is_an_answer() -> None:
    assert find_subjects('{"subjects": []}') == []


MILLION = 10**6
LONG = {
    "braces": "{" * MILLION,
    "brackets": "[" * MILLION,
    "keys": '{"' * (MILLION // 2),
    "nested objects": '{"a":' * (MILLION // 5),
    "nested lists of objects": '[{"a":' * (MILLION // 6),
    "nested and wide": '{"a":["b",' * 90 + '"c",' * (MILLION // 4),
    "lists that break off": '["a",x ' * (MILLION // 7),
    "lists of nothing": '[{"a":1}] ' * (MILLION // 10),
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_million_characters_of_nothing_take_seconds(text: str) -> None:
    began = time.monotonic()
    assert find_subjects(text) is None
    assert time.monotonic() - began < 10
