"""Subjects out of a text with JSON somewhere in it: between prose, in a code fence, twice, not shaped as asked for.

Every JSON object and list of the text is decoded where it stands; nothing is searched by its outermost braces.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

_OPENING = re.compile(r'\{(?=\s*")|\[(?=\s*["{])')
"""Where an object, or a list of texts or objects, may begin; a brace of prose does not look like this."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character: JSON can spell it, no file can hold it."""
_PASSES = 20
"""How often a text may be read in vain, so that no text, however it is made, takes more than seconds."""
_COST_OF_A_BREAK = 1000
"""Characters that an opening which is no JSON counts for, however soon that shows."""


def find_subjects(text: str) -> list[str] | None:
    """The subjects in a text: the first JSON that fits.

    Objects with a list under "subjects" go first, wherever they stand. Without one: objects with a "subject" each, one
    after the other; a list of texts, or an object whose only list it is, unless other JSON broke off before it, of
    which it may be a part. An item is a text, or an object with a "subject". A list without any letter, such as the
    example in the request, is taken only when there is no other.

    Args:
        text: What a language model wrote.

    Returns:
        The subjects as they were written, or None when nothing fits.
    """
    found = list(_values(text))
    named = [subjects for value, _ in found for subjects in _named(value)]
    if named:
        return next(filter(_has_letters, named), named[0])
    whole = [value for value, is_whole in found if is_whole]
    are_lines = whole and all(isinstance(value, dict) and "subject" in value for value in whole)
    others = [_texts(whole)] if are_lines else [_texts(_only_list(value)) for value in whole]
    return next((subjects for subjects in others if subjects and _has_letters(subjects)), None)


def _values(text: str) -> Iterator[tuple[Any, bool]]:
    """The outermost objects and lists of a text, each with whether nothing broke off before it."""
    decoder = json.JSONDecoder()
    at = n_vain = 0
    while n_vain <= _PASSES * (len(text) + _COST_OF_A_BREAK) and (opening := _OPENING.search(text, at)):
        start = opening.start()
        try:
            value, at = decoder.raw_decode(text, start)
        except RecursionError:
            return  # nobody nests subjects so deep
        except ValueError as error:  # also an integer of too many digits, which has no position
            end = error.pos if isinstance(error, json.JSONDecodeError) else len(text)
            n_vain += end - start + _COST_OF_A_BREAK
            at = start + 1
        else:
            yield value, n_vain == 0


def _named(value: Any) -> Iterator[list[str]]:
    """The lists under "subjects", outer ones first; without recursion, which deep nesting would exhaust."""
    left = [value]
    while left:
        node = left.pop()
        if isinstance(node, dict) and (subjects := _texts(node.get("subjects"), is_named=True)) is not None:
            yield subjects
        inner = node.values() if isinstance(node, dict) else node
        left += reversed([each for each in inner if isinstance(each, dict | list)])


def _only_list(value: Any) -> Any:
    """A list itself, or the only list of an object; nothing of an object that has the names asked for, but wrong."""
    if not isinstance(value, dict):
        return value
    inner = [each for each in value.values() if isinstance(each, dict | list)]
    return inner[0] if len(inner) == 1 and not {"subject", "subjects"} & value.keys() else None


def _texts(value: Any, *, is_named: bool = False) -> list[str] | None:
    """A list as texts, or None when it is none; where it is named, the only field of its objects may have any name."""
    if not isinstance(value, list):
        return None
    fields = {field for item in value if isinstance(item, dict) for field in item}
    field = fields.pop() if is_named and len(fields) == 1 else "subject"
    items = [item.get(field) if isinstance(item, dict) else item for item in value]
    texts = [item for item in items if isinstance(item, str) and not _SURROGATE.search(item)]
    return texts if len(texts) == len(value) else None


def _has_letters(subjects: list[str]) -> bool:
    return any(letter.isalpha() for subject in subjects for letter in subject)
