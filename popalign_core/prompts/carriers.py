"""Whole prompts told apart into a carrier and who is shown: "best quality, a realistic photo of Surveyor".

A list of whole prompts keeps its carriers. Put into another one they would read "a photo of a best quality, a realistic
photo of Surveyor", and an identity would stand before "best".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from popalign_core.prompts.grammar import with_article
from popalign_core.prompts.people import is_person
from popalign_core.prompts.similar import noun

_IMAGE = (
    "(?:photo(?:graph|graphy)?|pictures?|images?|portrait|painting|drawing|sketch|illustration|rendering|render|headshot"
    "|snapshot|close-?up|shot|selfie|artwork|polaroid|mugshot|watercolou?r|depiction|caricature|engraving)s?"
)
_CARRIER = re.compile(
    rf"(?P<before>.*?)\b{_IMAGE}(?:(?: may)? (?:of|showing|depicting|featuring|containing|contains?)\b:?|[:,])(?: |$)",
    re.I,
)
_FURTHER = (
    re.compile(r"(?:an? |the )?(?:[\w-]+ )?(?:face|head|hands?|body|profile|back|bust|figure|likeness|half) of ", re.I),
    re.compile(r"(?:exactly )?(?:one|1|a single|a real)(?: single| real)* (?:person|human|individual)[,:] ", re.I),
    re.compile(r"(?:a|one) (?:real )?(?:person|human|individual) (?:who is|working as|who works as) ", re.I),
)  # fmt: skip
_LAST_IMAGE = re.compile(rf".*\b{_IMAGE}", re.I)
_ARTICLE = re.compile(r"^(?:a/an|a ?\(n\)|an?) (?=\S)", re.I)
_EITHER = re.compile(r"\b(?:a/an|a ?\(n\)) (\S+)", re.I)
_NO_DOING = frozenset(
    ("stunning", "striking", "amazing", "breathtaking", "charming", "interesting", "captivating", "wedding")
)
_N_SHARING = 3
"""Prompts that must begin or end alike for that to be taken as their carrier, where it names no image."""


@dataclass(frozen=True)
class Listed:
    """An entry of a list.

    Attributes:
        text: As it was given, but for spacing.
        subject: Who is shown.
        carrier: Template with one `{}`; None where the entry is a subject and has none of its own.
    """

    text: str
    subject: str
    carrier: str | None = None


def separate(texts: Sequence[str]) -> list[Listed]:
    """The carrier and the subject of each entry of a list, in order.

    What names an image ("a photo of", "portrait, ") is a carrier on its own; other words are, where all entries of the
    list begin or end with them: "best quality, baker", "baker, studio photo". "a/an" becomes the right article.
    """
    plain = [" ".join(text.split()) for text in texts]
    found = [split_prompt(text) for text in plain]
    given = [subject for text, (_, subject) in zip(plain, found, strict=True) if text]
    lead = "" if any(carrier for carrier, _ in found) else _shared_lead(given)
    tail = _shared_tail(given)
    if not (any(carrier for carrier, _ in found) or lead or _LAST_IMAGE.search(tail)):
        tail = ""
    entries = []
    for text, (carrier, subject) in zip(plain, found, strict=True):
        if text and (lead or tail):
            end = len(subject) - len(tail) if tail else len(subject)
            own = _escaped(lead) + (carrier or "{}") + _escaped(tail)
            entries.append(Listed(text, _bare(subject[len(lead) : end]), own))
        else:
            entries.append(Listed(text, _bare(subject) if carrier else _one_article(subject), carrier))
    return entries


def split_prompt(text: str) -> tuple[str | None, str]:
    """The carrier that a text brings and the rest of it; None and all of it where it brings none."""
    match = _CARRIER.match(text)
    if match is None or not _describes(match["before"]):
        return None, text
    end = match.end()
    while further := next((found for pattern in _FURTHER if (found := pattern.match(text, end))), None):
        end = further.end()
    return _escaped(text[:end]) + "{}", text[end:]


def is_whole(subject: str) -> bool:
    """Whether a subject is a prompt already: it brings a carrier, or ends as one ("teacher portrait")."""
    if split_prompt(subject)[0] is not None:
        return True
    words = noun(subject).split() or [""]
    return len(words) <= 3 and _LAST_IMAGE.fullmatch(words[-1]) is not None


def _describes(before: str) -> bool:
    """Whether these words say what image it is: nobody and nothing that is done, unlike "a chef taking a photo of"."""
    words = re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", before.casefold())
    doing = [
        word for word in words if word.endswith("ing") and word not in _NO_DOING and not _LAST_IMAGE.fullmatch(word)
    ]
    return len(words) <= 12 and not doing and not any(map(is_person, words)) and " - " not in before


def _shared_lead(texts: Sequence[str]) -> str:
    """What all begin with, up to a comma or a colon; empty where it names somebody."""
    if len(texts) < _N_SHARING:
        return ""
    start = _common(texts)
    lead = start[: max(start.rfind(", "), start.rfind(": ")) + 2] if re.search("[,:] ", start) else ""
    return lead if not any(map(is_person, re.findall(r"\w+", lead.casefold()))) else ""


def _shared_tail(texts: Sequence[str]) -> str:
    """What all end with, from a comma on."""
    if len(texts) < _N_SHARING:
        return ""
    end = _common([text[::-1] for text in texts])[::-1]
    return end[end.index(", ") :] if ", " in end else ""


def _common(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    n_alike = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:n_alike]


def _escaped(carrier: str) -> str:
    """Braces of the text itself would be taken for the place of the subject."""
    return _one_article(carrier.replace("{}", ""))


def _bare(subject: str) -> str:
    return _one_article(_ARTICLE.sub("", subject.strip(" ,"), count=1))


def _one_article(text: str) -> str:
    """ "a/an office" as "an office"."""
    return _EITHER.sub(lambda found: with_article(found[1]), text)
