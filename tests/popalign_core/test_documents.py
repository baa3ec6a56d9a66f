"""JSON and TOML that nobody would write: a ValueError in words, at once."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popalign_core.documents import check_depth, read_json, read_toml

DIGITS = "9" * 5000
BAD_JSON = {
    "nested lists": ("[" * 100_000, "nested too deep"),
    "nested objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deep"),
    "digits": (f'{{"a": {DIGITS}}}', "integer of thousands of digits"),
    "half a pair": ('{"a": "\\ud800"}', "surrogates not allowed"),
    "half a pair as a key": ('{"\\uDFFF": 1}', "surrogates not allowed"),
    "half a pair in bytes": (b'"\xed\xa0\x80"', "can't decode"),
    "latin-1": ('"\u00e9"'.encode("latin-1"), "can't decode"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "can't decode"),
    "cut off": ('{"a": [1, 2', "Expecting"),
    "nothing": ("", "Expecting value"),
}
BAD_TOML = {
    "nested lists": ("a = " + "[" * 100_000, "nested too deep"),
    "digits": (f"a = {DIGITS}", "integer of thousands of digits"),
    "dots": (".".join("a" * 50_000) + " = 1", "more than 64 dots"),
    "dots in a table's name": ("[" + " . ".join('"a"' for _ in range(50_000)) + "]", "more than 64 dots"),
    "dots in an inline table": ("x = {" + ".".join("b" * 50_000) + " = 1}", "more than 64 dots"),
    "half a pair": ('a = "\\ud800"', "not a Unicode scalar"),
    "NUL": ("a = '\0'", "invalid character"),
}


@pytest.mark.parametrize(
    ("read", "text", "problem"),
    [pytest.param(read_json, *case, id=f"JSON, {name}") for name, case in BAD_JSON.items()]
    + [pytest.param(read_toml, *case, id=f"TOML, {name}") for name, case in BAD_TOML.items()],
)
def test_what_is_wrong_is_said_at_once(read: Callable[[Any], Any], text: str | bytes, problem: str) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=problem) as caught:
        read(text)
    assert time.monotonic() - start < 5
    assert len(str(caught.value)) < 300


def test_what_is_right_is_read() -> None:
    assert read_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}
    assert read_toml("a.b.c = '1.2.3'\n[d]\n") == {"a": {"b": {"c": "1.2.3"}}, "d": {}}
    assert read_toml('text = """' + "A sentence. " * 100 + '"""') == {"text": "A sentence. " * 100}


@settings(max_examples=30, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_every_document_comes_back(document: Any) -> None:
    assert read_json(json.dumps(document)) == document
    assert read_json(json.dumps(document, ensure_ascii=False).encode()) == document


def test_each_key_may_be_asked_for_once() -> None:
    assert read_json('{"a": 1, "a": 2}') == {"a": 2}
    assert read_json('[{"a": 1}, {"a": {"a": 2}}]', each_once=True) == [{"a": 1}, {"a": {"a": 2}}]
    with pytest.raises(ValueError, match="it has the key 'b' more than once in one object"):
        read_json('[{"a": {"b": 1, "b": 1}}]', each_once=True)


def test_depth_is_counted_through_lists_and_objects() -> None:
    check_depth({"a": [{"b": 1}]}, 3)
    check_depth(1, 0)
    with pytest.raises(ValueError, match="nested more than 2 deep"):
        check_depth({"a": [{"b": 1}]}, 2)
