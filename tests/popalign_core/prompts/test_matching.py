"""Which prompt a picture is of: by id, by text, by a folder's mangled name; everything else has a reason."""

import pandas as pd
import pytest

from popalign_core.prompts.matching import match_prompts

PROMPTS = pd.DataFrame({"prompt_id": ["a1", "b2"], "text": ["A photo of a judge", "a photo of a café owner"]})


@pytest.mark.parametrize(
    ("by", "name", "prompt_id"),
    [
        ("prompt_id", "a1", "a1"),
        ("prompt_id", " b2\n", "b2"),
        ("prompt_id", "A1", None),
        ("prompt_id", "A photo of a judge", None),
        ("text", "a1", None),
        ("text", "  a PHOTO of a Judge ", "a1"),
        ("text", "a_photo_of_a_judge", None),
        ("text", "a photo of a judge.", None),
        ("folder", "a_Photo_of a_judge", "a1"),
        ("folder", "a photo of a café owner", "b2"),
        ("folder", "a_photo_of_a_cafe\u0301_owner", "b2"),  # as macOS spells it
    ],
)
def test_a_name_means_a_prompt_or_none(by: str, name: str, prompt_id: str | None) -> None:
    reason = None if prompt_id else "no evaluation prompt"
    assert match_prompts([(by, name, "0")], PROMPTS) == [(prompt_id, reason)]


def test_every_picture_that_is_left_out_has_its_reason() -> None:
    doubled = pd.DataFrame({"prompt_id": ["c", "d"], "text": ["a_b", "a b"]})
    labels = [("folder", "A B", "0"), ("text", "a b", "0"), ("text", None, "1"), ("prompt_id", " ", "1")]
    assert match_prompts(labels, doubled) == [
        (None, "ambiguous prompt"),
        ("d", None),
        (None, "no prompt named"),
        (None, "no prompt named"),
    ]
    assert match_prompts([("text", "a b", None)], doubled) == [(None, "missing image")]


def test_the_same_bytes_count_once_a_prompt() -> None:
    """However the prompt is named; another prompt may have them too."""
    labels = [("prompt_id", "a1", "0"), ("text", "a photo of a judge", "0"), ("prompt_id", "b2", "0")]
    labels += [("prompt_id", "a1", "1")]
    assert match_prompts(labels, PROMPTS) == [("a1", None), (None, "same image twice"), ("b2", None), ("a1", None)]
