"""Which evaluation prompt an external image was made for."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from popalign_core.models.pixels import MISSING, TWICE
from popalign_core.prompts.checks import canonical

UNNAMED = "no prompt named"
UNMATCHED = "no evaluation prompt"
AMBIGUOUS = "ambiguous prompt"

Label = tuple[str, str | None, str | None]
"""How an image names its prompt (a key of `FORMS`), the name, the checksum of its bytes; None where there is none."""

Match = tuple[str | None, str | None]
"""The prompt's id, or None and why the image cannot be used."""


def _folder_form(name: str) -> str:
    """What is left of a text that became a folder's name: no case, no accents' spelling, underscores for spaces."""
    return canonical(unicodedata.normalize("NFC", name).replace("_", " "))


FORMS: Mapping[str, Callable[[str], str]] = {"prompt_id": str.strip, "text": canonical, "folder": _folder_form}
"""How an image names its prompt -> what of the name is compared."""


def match_prompts(labels: Iterable[Label], prompts: pd.DataFrame) -> list[Match]:
    """Find each image's prompt, and refuse an image that the same prompt has already.

    Args:
        labels: Of the images.
        prompts: Rows of a `prompts` table to choose from.

    Returns:
        One match an image; the reason is one of `no prompt named`, `no evaluation prompt`, `ambiguous prompt`,
        `missing image`, `same image twice`.
    """
    known = {by: _by_form(prompts, by) for by in FORMS}
    seen: set[tuple[str, str]] = set()
    return [_match(label, known[label[0]], seen) for label in labels]


def _by_form(prompts: pd.DataFrame, by: str) -> dict[str, list[str]]:
    """What is compared -> ids of the prompts that it may mean."""
    ids: dict[str, list[str]] = {}
    names = prompts["prompt_id" if by == "prompt_id" else "text"]
    for prompt_id, name in zip(prompts["prompt_id"], names, strict=True):
        ids.setdefault(FORMS[by](name), []).append(prompt_id)
    return ids


def _match(label: Label, known: Mapping[str, list[str]], seen: set[tuple[str, str]]) -> Match:
    by, name, sha256 = label
    form = FORMS[by](name or "")
    if not form:
        return None, UNNAMED
    found = known.get(form, [])
    if len(found) != 1:
        return None, AMBIGUOUS if found else UNMATCHED
    if sha256 is None:
        return None, MISSING
    if (found[0], sha256) in seen:
        return None, TWICE
    seen.add((found[0], sha256))
    return found[0], None
