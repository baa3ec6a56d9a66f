"""Subjects that are the same in other words: spelling, number, hyphens, order; and which part of one is the person.

No library of the install finds near-duplicates. MinHash would find them by chance; for texts this short an index of
words is exact and no longer.
"""

import re
import unicodedata
from collections.abc import Iterable

SHARE = 4, 5
"""Texts are alike when they have at least 4 of 5 of their words in common. Up to three words that is all of them, so a
software engineer is no software developer."""

_LITTLE = frozenset(("a", "an", "the", "some", "of", "s"))
_DASH = re.compile(r" ?(?:—|(?<= )[–-](?= )|(?<=\w)[:;](?= )) ?")
_CUT = re.compile(
    r",| (?:in|for|at|on|with|from|who|that|while|near|inside|during|behind|beside|under|among|amid|before|between|by|"
    r"over|through|is|are|was) "
)
_DOES = re.compile(r"(?<=\w) [a-z]+[^s\W]s(?= (?:a|an|the|some|two|three|several|many) )")
_DOING = re.compile(r"(?<=\w) [a-z]+ing\b(?! ?$)")
_DETERMINER = re.compile(r"^(?:a|an|the) ")
_ANYBODY = frozenset(("person", "someone", "somebody", "individual", "adult", "human", "couple"))
_PLURALS = {
    "people": "person", "children": "child", "men": "man", "women": "woman", "wives": "wife", "feet": "foot",
    "teeth": "tooth", "mice": "mouse", "geese": "goose",
}  # fmt: skip
_SPELLINGS = (
    (re.compile(r"[ao]e"), "e"),  # archaeologist, orthopaedic
    (re.compile(r"our"), "or"),
    (re.compile(r"(?<=[bt])re$"), "er"),  # theatre
    (re.compile(r"(?<=\w)or$"), "er"),  # adviser
    (re.compile(r"is(?=(?:e|er|ing)$)"), "iz"),
    (re.compile(r"([a-z])\1"), r"\1"),  # jeweller
)


def singular(word: str) -> str:
    """The singular of a plural; other words stay, or lose an ending for all of their uses alike."""
    for plural, single in _PLURALS.items():
        if word.endswith(plural):
            return word.removesuffix(plural) + single
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "ches", "shes", "xes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 2:
        return word[:-1]
    return word


def noun(subject: str) -> str:
    """Who is shown, without what is done or where: "a botanist cataloguing plants in a forest" is a botanist."""
    text = " ".join(subject.casefold().split())
    bare = _DETERMINER.sub("", text, count=1)
    if (first := bare.partition(" ")[0]) in _ANYBODY:
        return first
    named, *scene = _DASH.split(bare, maxsplit=1)
    cut = _CUT.split(named, maxsplit=1)[0] or named or bare
    if scene:
        return cut
    cut = _DOES.split(cut, maxsplit=1)[0]
    if bare == text and len(bare.split()) <= 3:
        return cut  # a film editing supervisor edits nothing
    return _DOING.split(f"{cut} ", maxsplit=1)[0].strip() or cut


def split_subject(subject: str) -> tuple[str, str]:
    """The subject up to who is shown, with its article, and the scene behind: ("a botanist", " - pressing plants")."""
    shown, key = noun(subject), subject.casefold()
    end = key.find(shown) + len(shown)
    if len(key) != len(subject) or end < len(shown):
        return subject, ""
    return subject[:end], subject[end:]


def head(subject: str) -> str:
    """What two subjects are about the same by: the noun, or all of it where that is anybody, such as a person."""
    cut = noun(subject)
    return subject if cut in _ANYBODY else cut


def heads(subjects: Iterable[str]) -> list[str]:
    """The head of each."""
    return [head(subject) for subject in subjects]


def _tokens(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    words = [singular(word) for word in re.findall(r"\w+", plain) if word not in _LITTLE]
    for pattern, replacement in _SPELLINGS:
        words = [pattern.sub(replacement, word) for word in words]
    return words


class SimilarTexts:
    """Texts to which others are compared.

    A text that is like another lacks few of its words, so it has one at least of any few more than that: only texts
    with one of the rarest are compared.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._joined: dict[str, str] = {}
        self._entries: list[tuple[frozenset[str], str]] = []
        self._by_word: dict[str, list[int]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Compare to this one too."""
        tokens = _tokens(text)
        if not tokens:
            return
        self._joined.setdefault("".join(tokens), text)
        for word in set(tokens):
            self._by_word.setdefault(word, []).append(len(self._entries))
        self._entries.append((frozenset(tokens), text))

    def find(self, text: str) -> str | None:
        """The first text that is like this one, or None."""
        tokens = _tokens(text)
        if (same := self._joined.get("".join(tokens))) is not None:
            return same
        words, (part, whole) = frozenset(tokens), SHARE
        n_lacking = len(words) * (whole - part) // whole
        rarest = sorted((self._by_word.get(word, []) for word in words), key=len)[: n_lacking + 1]
        candidates = sorted({number for numbers in rarest for number in numbers})
        return next((self._entries[n][1] for n in candidates if _alike(words, self._entries[n][0])), None)


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    part, whole = SHARE
    return whole * len(one & other) >= part * len(one | other)
