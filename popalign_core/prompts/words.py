"""Words that name an identity, from lists beside the code and from the axes."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import pairwise

from popalign_core.config import Axis
from popalign_core.prompts.similar import singular

ALWAYS = ("gender", "names", "origin", "religion")
"""Lists that count whatever the axes are: what they name would be seen in the images."""
BY_AXIS: Mapping[str, str] = {"age": "age"}
"""Axis -> list that counts when there is such an axis; a "senior engineer" is else a rank."""

# "fireman", "saleswomen", "paperboy", but not "human": words that end so without naming a gender are listed.
_GENDERED_ENDING = re.compile(r"[a-z]{3,}m[ae]n|[a-z]{2,}(?:wom[ae]n|boys?|girls?|lad(?:y|ies)|fathers?|mothers?)")

_MONOCHROME = re.compile(
    r"\bblack[ -]and[ -]white (?=(?:[\w-]+ ){0,2}(?:photo|picture|image|portrait|film|drawing|sketch|shot|print))", re.I
)


def identity_words_in(text: str, axes: Sequence[Axis]) -> list[str]:
    """The words of a text that name an identity: the axes' own, with gendered English, names, origins, religions.

    Whole words only, so "female" is not "male" and "blacksmith" is not "black"; in any number and case, but for
    listed words with a capital: "Polish" is an origin, "nail polish" is not. A black and white photo names nobody.

    Args:
        text: Any text.
        axes: Their class names and their words in prompts are looked for, with spaces or hyphens between words.

    Returns:
        The words found, as listed in the axis or as in the text in lower case, without repeats.
    """
    text = _MONOCHROME.sub("", text)
    phrases = {phrase for axis in axes for name in axis.classes for phrase in (name, axis.word(name)) if phrase.strip()}
    found = sorted(phrase for phrase in phrases if _phrase(phrase).search(text))
    text = _harmless().sub(" ", text)
    lists = [*ALWAYS, *(BY_AXIS[axis.name] for axis in axes if axis.name in BY_AXIS)]
    words = re.findall(r"[^\W\d_]+", text)
    pairs = [f"{one} {other}" for one, other in pairwise(words)]
    if len(words) > 1 and all(word[0].isupper() for word in words):  # Title Case says nothing: "Nail Polish Chemist"
        words, pairs = [word.casefold() for word in words], [pair.casefold() for pair in pairs]
    listed = [phrase.casefold() for phrase in (*words, *pairs) if _is_gendered(phrase) or _is_listed(phrase, lists)]
    return list(dict.fromkeys((*found, *listed)))


def _is_listed(phrase: str, lists: Sequence[str]) -> bool:
    forms = {phrase, phrase.casefold(), singular(phrase.casefold())}
    return any(forms & word_list(name) for name in lists)


def _is_gendered(word: str) -> bool:
    key = word.casefold()
    return _GENDERED_ENDING.fullmatch(key) is not None and not {key, singular(key)} & word_list("not_gendered")


@cache
def word_list(name: str) -> frozenset[str]:
    """The words and pairs of words of a list; one with a capital is meant with it."""
    text = (resources.files("popalign_core.prompts") / "word_lists" / f"{name}.txt").read_text(encoding="utf-8")
    return _phrases(text)


@cache
def word_groups(name: str) -> Mapping[str, frozenset[str]]:
    """The lists of a file that holds several, each below its name in brackets."""
    text = (resources.files("popalign_core.prompts") / "word_lists" / f"{name}.txt").read_text(encoding="utf-8")
    parts = [part.partition("]") for part in text.split("\n[")[1:]]
    return {group: _phrases(words) for group, _, words in parts}


def _phrases(text: str) -> frozenset[str]:
    lines = (line.partition("#")[0] for line in text.splitlines())
    return frozenset(phrase.strip() for line in lines for phrase in line.split(",") if phrase.strip())


@cache
def _harmless() -> re.Pattern[str]:
    phrases = sorted(word_list("harmless"), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?!\w)", re.IGNORECASE)


@cache
def _phrase(phrase: str) -> re.Pattern[str]:
    body = r"[\s-]+".join(re.escape(word) for word in re.split(r"[\s-]+", phrase.strip()))
    return re.compile(rf"(?<!\w){body}(?:e?s)?(?!\w)", re.IGNORECASE)
