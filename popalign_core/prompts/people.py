"""Whether a prompt shows one person or several.

Who is named first is shown: the head, before a dash, colon, comma, preposition or verb. "Teachers", "a pair of
climbers" and "a chef and a waiter" are several. In the scene behind the head plural nouns, numbers and materials say
nothing; what counts is somebody else whom the sentence puts there: "explaining fractions to students", "taking a
patient's pulse", "surrounded by a crowd", and what is led: "guiding a tour". These do not:

- a person who describes a thing, or owns one that can be without its owner: patient records, children's books;
- a person in what is written, made or ordered: letters from soldiers, a portrait of a family, scans of two patients;
- a person for whom something is made, unless they are there: suits for clients, but wine poured for guests;
- a person who is written to, remembered, or not there: mailing parcels to customers, without an audience.

In doubt somebody is there. The words are in `word_lists`: `people`, `body` (parts that show their owner), `traces`
(what people leave, or are shown in) and `scenes`.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from popalign_core.prompts.similar import noun, singular
from popalign_core.prompts.words import word_groups, word_list

_SCENES = word_groups("scenes")
_QUANTITIES = _SCENES["groups"] | _SCENES["more quantities"]
_DETERMINERS = _SCENES["one"] | _SCENES["numbers"] | _SCENES["more determiners"]
_BOUNDARIES = _SCENES["prepositions"] | _DETERMINERS | _SCENES["more boundaries"]
_PORTRAYING = _SCENES["photographing"] | _SCENES["more portraying"]
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['-][^\W\d_]+)*(?:(?<=s)')?|[,;:.()/–—-]")
_LEADING = re.compile(
    r"\b(?:leading|guiding|teaching|chairing|moderating|facilitating|hosting|addressing|instructing)"
    r"(?: [a-z'-]+){0,3}? (?:tour|classe|session|workshop|seminar|lesson|meeting|rehearsal|parade|discussion|debate"
    r"|panel|hike|expedition|ceremony|orchestra)s?\b"
)
_CROWDED = re.compile(
    r"\b(?:crowded|packed|thronged) (?:[a-z'-]+ )?(?:market|street|bar|room|hall|station|platform|square|restaurant"
    r"|cafe|café|stadium|train|tram|bus|subway|theater|theatre|auditorium|classroom|club|beach|plaza|bazaar|mall"
    r"|airport|arena|church|courtroom|courthouse|ward|clinic|pub|shop|store|office|pavement|sidewalk|stand|stands|gallery)s?\b"
)
_AGENT = re.compile(r"\w+(?:ologist|ician|smith|worker|goer|grapher|mate|person|people|women|men)")
_MODELS = re.compile(
    r"\b(?:photographing|directing|dressing|styling|posing|shooting|sketching|painting|filming|fitting|fashion|life)"
    r"(?: (?:a|an|the|two|three|several|live|nude|of))* models?\b|\bmodels? (?:poses?|posing|sits?|stands?|walks?)\b"
)  # elsewhere they are of houses and of data
_AGENTIVE = re.compile(r"[^\W\d]{3,}(?:er|or|ist|ant|ee|ian|eer)s?")
_SINGULAR_ENDINGS = ("ss", "us", "is")


def shows_several(subject: str) -> bool:
    """Whether a subject or a scene, in any case, shows more people than one: see above."""
    text = " ".join(subject.casefold().split()).replace("’", "'")
    shown = noun(text)
    at = text.find(shown)
    article, rest = text[:at].strip(), text[at + len(shown) :]
    if _is_several(shown.split() or [""], singular_article=article in ("a", "an")):
        return True
    if any(pattern.search(rest) for pattern in (_LEADING, _CROWDED, _MODELS)):
        return True
    words = _TOKEN.findall(rest)
    return any(_is_there(words, at) for at in range(len(words)))


def _is_several(head: Sequence[str], *, singular_article: bool) -> bool:
    """Of who is named first."""
    if head[0] in _SCENES["numbers"] or (head[0].isdigit() and head[0] != "1"):
        return True
    for at, word in enumerate(head[1:-1], start=1):
        if word in ("and", "&", "plus") and (is_person(head[at - 1]) or head[at + 1] in _DETERMINERS):
            return True
    named = head[: head.index("of", 1)] if "of" in head[1:] else head
    last = named[-1].strip(",.;")
    owners = [word.removesuffix("'s") for word in named[:-1] if word.endswith("'s")]
    if owners and singular(last) in word_list("body"):  # a person's hands
        last = owners[0]
    if last in _SCENES["groups"]:
        return True
    if singular_article or not last.endswith("s") or last.endswith(_SINGULAR_ENDINGS):
        return False
    # "nurse checks charts" is one, "student nurses" are several
    does = any(is_person(one) and other.endswith("s") for one, other in pairwise(named[:-1]))
    return is_person(last) or not does


def is_person(word: str) -> bool:
    """Whether a word names a person or people, in any number; hyphens do not matter."""
    bare = word.replace("-", "").removesuffix("'")
    return bool({bare, singular(bare)} & word_list("people")) or _AGENT.fullmatch(singular(bare)) is not None


def _is_there(words: Sequence[str], at: int) -> bool:
    """Whether a word of the scene names somebody who is shown."""
    word, behind = words[at], words[at + 1 : at + 5]
    following = behind[0] if behind else "."
    if word in _SCENES["those"]:
        return words[at - 1 : at] == ["the"] and _ends_before(following)
    if word.endswith(("'s", "s'")):
        owner = word.removesuffix("'").removesuffix("'s")
        is_dressed = any(each in _SCENES["fastening"] for each in words[:at])
        return (is_person(owner) or owner in ("speaker", "model", "player")) and _owns_a_body(behind, is_dressed)
    start = _start(words, at)
    if not (is_person(word) or _is_met(words, start, word)) or (word in _SCENES["groups"] and following == "of"):
        return False
    described = words[start:at]
    is_one = singular(word) == word and word not in _SCENES["without article"]
    if is_one and not (_DETERMINERS & {*described}):
        return False  # patient records
    # a customer waits; a customer record
    is_verb = (
        bool(_SCENES["one"] & {*described}) and following.endswith("s") and not following.endswith(_SINGULAR_ENDINGS)
    )
    is_verb |= words[start - 1 : start] != [] and words[start - 1] in _SCENES["helping"]  # a colleague push a stretcher
    if (is_one or word in _SCENES["without article"]) and not _ends_before(following) and not is_verb:
        return False
    return not (_SCENES["away"] & {*described}) and _is_put_there(words, start, word, following)


def _is_met(words: Sequence[str], start: int, word: str) -> bool:
    """Whether a word that is not listed names somebody by its ending and by what is done with them."""
    link, doing = ["", "", *words[:start]][-1], ["", "", *words[:start]][-2]
    return _AGENTIVE.fullmatch(word) is not None and (
        link in _SCENES["meeting"] or (link in ("to", "with", "at") and doing in _SCENES["talking"])
    )


def _ends_before(word: str) -> bool:
    """Whether a person is named to the end there, and does not describe what follows."""
    return not word[0].isalnum() or word in _BOUNDARIES or word.endswith(("ing", "ed", "ly"))


def _owns_a_body(behind: Sequence[str], is_dressed: bool) -> bool:
    for at, word in enumerate(behind):
        if not word[0].isalpha() or word in _BOUNDARIES:
            return False
        if {word, singular(word), " ".join(behind[at : at + 2])} & word_list("body"):
            return True
        if is_dressed and {word, singular(word)} & _SCENES["clothes"]:
            return True
    return False


def _start(words: Sequence[str], at: int) -> int:
    """Where what is said of a person begins: at the article, or behind the verb or the preposition."""
    while at > 0:
        word = words[at - 1]
        if word in _DETERMINERS:
            return at - 1 if words[at - 2 : at - 1] not in (["the"], ["an"], ["a"]) else at - 2
        if not word[0].isalnum() or word in _SCENES["prepositions"] or word in ("and", "or", "while", "when", "where"):
            return at
        if _is_verb(words, at - 1):
            return at
        at -= 1
    return 0


def _is_verb(words: Sequence[str], at: int) -> bool:
    """Whether it is what somebody does; "visiting" in "with visiting officials" is not."""
    word = words[at]
    if not word.endswith("ing") or word in _SCENES["no verbs"]:
        return False
    before = words[at - 1] if at else "-"
    if word in _SCENES["also nouns"] and before[0].isalnum():
        return False
    return before not in _SCENES["prepositions"] or before in ("by", "while", "after", "before", "of")


def _is_put_there(words: Sequence[str], start: int, word: str, following: str) -> bool:
    """Whether the verb or the preposition before a person puts them into the scene."""
    while start > 1 and words[start - 1] in ("and", "or", "nor"):  # the same as of whom stands before
        start = _start(words, start - 2)
    if start == 0:
        return True
    link, before = words[start - 1], words[: start - 1]
    verb = next((at for at in reversed(range(len(before))) if _is_verb(before, at)), -1)
    doing = before[verb] if verb >= 0 else ""
    last = singular(before[-1]) if before else ""
    own = {singular(each) for each in before[verb + 1 :]}
    match link:
        case "of":
            return _is_of(words, start, last, doing)
        case "for":
            return doing not in _SCENES["making"]
        case "from":
            return doing in _SCENES["taking"] and (doing == "taking" or not own & word_list("traces"))
        case "to":
            return doing not in _SCENES["sending"] and last not in _SCENES["calls"]
        case "with":
            return last not in _SCENES["calls"]
        case "by":
            return last not in word_list("traces") and last not in _SCENES["made"]
        case "on":
            return last not in word_list("traces")
        case "as":
            return following[0].isalnum() and following not in _SCENES["prepositions"]
        case "before":
            return not following[0].isalnum() or following in _SCENES["prepositions"]
        case "in" | "into":
            return word != "group"
    return link not in _SCENES["elsewhere"] and link not in _SCENES["afar"]


def _is_of(words: Sequence[str], start: int, last: str, doing: str) -> bool:
    """Whether "... of people" shows them."""
    if last in _QUANTITIES or (last == "and" and start > 2):
        at = start - 2
        return _is_put_there(words, _start(words, at), last, ".")
    if last in ("photo", "photograph", "picture", "image", "shot", "snapshot") and doing in _SCENES["photographing"]:
        return True
    if last == "portrait" and doing in _PORTRAYING:
        return True
    return last in word_list("body") - word_list("traces") or last in _SCENES["beside"]
