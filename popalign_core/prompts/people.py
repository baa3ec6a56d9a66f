"""Whether a prompt shows one person or several.

Who is named first is shown: the head, before a dash, colon, comma, preposition or verb. "Teachers", "a pair of climbers"
and "a chef and a waiter" are several. In the scene behind the head plural nouns, numbers and materials say nothing; what
counts is somebody else whom the sentence puts there: "explaining fractions to students", "taking a patient's pulse",
"surrounded by a crowd". These do not:

- a person who describes a thing, or owns one that can be without its owner: patient records, children's books, a team logo;
- a person in what is written, made or ordered: letters from soldiers, a portrait of a family, scans of two patients;
- a person for whom something is made, unless it is done in front of them: suits for clients, but wine poured for guests;
- a person who is written to, remembered, or not there: mailing parcels to customers, without an audience.

In doubt somebody is there. The words are in `word_lists`: `people`, `body` (parts that show their owner) and `traces`.
"""

import re
from collections.abc import Sequence

from popalign_core.prompts.similar import noun, singular
from popalign_core.prompts.words import word_list

_NUMBERS = frozenset(
    ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "dozen", "several", "many", "both",
     "multiple", "numerous", "various", "few", "couple")
)  # fmt: skip
_GROUPS = frozenset(
    ("people", "couple", "pair", "trio", "duo", "quartet", "team", "crew", "group", "crowd", "family", "staff", "band",
     "orchestra", "choir", "squad", "children", "police", "audience", "twins", "triplets", "troupe", "troop", "platoon",
     "jury", "committee", "gang", "class", "congregation", "cast", "workforce")
)  # fmt: skip
_QUANTITIES = _GROUPS | frozenset(
    ("row", "circle", "line", "queue", "handful", "dozen", "hundred", "thousand", "sea", "pack", "number", "hall", "room",
     "roomful", "party", "stream", "mob", "throng", "some", "many", "most", "all", "half", "both", "full")
)  # fmt: skip
_WITHOUT_ARTICLE = frozenset(("staff", "personnel", "police", "people", "children", "others", "everyone", "everybody",
                              "someone", "somebody", "folk", "crew", "passers-by",
                              "passersby"))  # fmt: skip
_ONE = frozenset(("a", "an", "one", "another", "each", "every"))
_DETERMINERS = _ONE | _NUMBERS | frozenset(
    ("the", "this", "that", "these", "those", "some", "any", "all", "other", "fellow", "no", "their", "its", "my", "our",
     "your")
)  # fmt: skip
_AWAY = frozenset(
    ("no", "absent", "missing", "imaginary", "invisible", "fictional", "future", "potential", "dead", "deceased", "lost",
     "departed", "unseen", "unknown", "online", "remote", "virtual", "distant",
     "wooden", "toy", "tin", "clay", "plastic", "marble", "bronze", "porcelain", "stone", "paper", "lead", "stuffed",
     "miniature", "wax", "plaster", "knitted", "cardboard", "chocolate", "gingerbread", "carved", "sculpted", "animated",
     "cartoon", "lego", "dummy")
)  # fmt: skip
_HELPING = frozenset(("helping", "letting", "seeing", "assisting"))
_FASTENING = frozenset(("tying", "lacing", "fastening", "buttoning", "zipping", "adjusting", "straightening", "clipping",
                        "buckling", "loosening", "strapping"))  # fmt: skip
_CLOTHES = frozenset(("shoe", "shoelace", "lace", "boot", "skate", "jacket", "coat", "shirt", "tie", "sleeve", "seatbelt",
                      "harness", "belt", "helmet", "apron", "dress", "gown", "costume", "wig", "strap", "veil", "hem",
                      "mask", "headset", "necklace", "scarf"))  # fmt: skip
_PREPOSITIONS = frozenset(
    ("of", "for", "from", "to", "about", "on", "upon", "with", "without", "by", "in", "into", "inside", "at", "among",
     "amongst", "amid", "between", "beside", "near", "behind", "before", "after", "until", "since", "around", "along",
     "alongside", "above", "below", "beneath", "under", "over", "across", "against", "through", "toward", "towards",
     "past", "as", "like", "unlike", "than", "per", "via", "regarding", "concerning", "off", "onto", "opposite",
     "outside", "within", "next", "during", "beyond", "throughout", "up", "down", "out")
)  # fmt: skip
_BOUNDARIES = _PREPOSITIONS | _DETERMINERS | frozenset(
    ("and", "or", "but", "while", "when", "where", "who", "whom", "whose", "which", "is", "are", "was", "were", "has",
     "have", "can", "wait", "watch", "listen", "sit", "stand", "nearby", "away", "ahead", "asleep", "alone", "there",
     "here", "home", "alike", "today", "how", "what", "why", "so", "if", "not", "then", "only")
)  # fmt: skip
_NO_VERBS = frozenset(
    ("morning", "evening", "ceiling", "wedding", "king", "ring", "string", "wing", "thing", "spring", "clothing", "during",
     "railing", "sling", "nothing", "something", "everything")
)  # fmt: skip
_ALSO_NOUNS = frozenset(("building", "painting", "drawing", "meeting", "training", "housing", "opening", "recording",
                         "casting", "landing", "clearing"))  # fmt: skip
_MAKING = frozenset(
    ("sewing", "designing", "writing", "rewriting", "building", "drawing", "baking", "cooking", "preparing", "planning",
     "arranging", "folding", "hemming", "tuning", "testing", "copying", "peeling", "chopping", "stitching", "knitting",
     "carving", "drafting", "developing", "making", "creating", "printing", "painting", "sketching", "sealing",
     "stacking", "pinning", "packing", "mixing", "ordering", "editing", "composing", "choosing", "assembling",
     "crafting", "weaving", "welding", "coding", "programming", "producing", "publishing", "compiling", "reviewing",
     "checking", "setting", "laying", "booking", "reserving", "buying", "repairing", "mending", "cleaning", "polishing",
     "washing", "ironing", "brewing", "grinding", "roasting", "decorating", "wrapping", "sorting", "storing", "filling",
     "labelling", "labeling", "calculating", "researching", "searching", "waiting", "looking", "modifying", "adapting",
     "tailoring", "forging", "casting", "moulding", "molding", "shaping", "soldering", "typing", "translating",
     "inventing", "engraving", "cutting", "stocking", "growing", "harvesting", "collecting", "gathering", "organizing",
     "organising", "scheduling", "hanging", "updating", "filing", "analyzing", "analysing", "counting", "inspecting",
     "stamping", "curating", "selecting", "stuffing", "installing", "sanding", "restoring", "mapping", "recording")
)  # fmt: skip
_MEETING = frozenset(
    ("teaching", "instructing", "interviewing", "greeting", "welcoming", "coaching", "advising", "consoling", "escorting",
     "comforting", "hugging", "questioning", "arresting", "tackling", "congratulating", "applauding", "tutoring",
     "mentoring", "counselling", "counseling", "scolding", "thanking", "embracing", "saluting", "briefing",
     "interrogating", "ushering", "reassuring", "lifting", "helping", "assisting", "training", "rescuing")
)  # fmt: skip
_TALKING = frozenset(
    ("speaking", "talking", "whispering", "chatting", "laughing", "arguing", "negotiating", "waving", "smiling",
     "nodding", "bowing", "shouting", "yelling", "lecturing", "explaining", "presenting", "consulting", "joking")
)  # fmt: skip
_SENDING = frozenset(
    ("writing", "sending", "mailing", "emailing", "posting", "shipping", "typing", "texting", "replying", "responding",
     "forwarding", "dedicating", "drafting", "composing", "broadcasting", "streaming", "dispatching")
)  # fmt: skip
_TAKING = frozenset(("taking", "drawing", "collecting", "buying", "receiving", "accepting", "learning", "removing"))
_AFAR = frozenset(
    ("emailing", "phoning", "telephoning", "texting", "messaging", "invoicing", "billing", "awaiting", "expecting",
     "imagining", "remembering", "researching", "representing", "scheduling", "paying", "tracking", "promoting",
     "impersonating", "portraying", "inventing")
)  # fmt: skip
_MADE = frozenset(
    ("written", "painted", "made", "built", "designed", "drawn", "sewn", "signed", "composed", "submitted", "sent", "left",
     "given", "donated", "owned", "ordered", "used", "created", "produced", "recorded", "published", "carved", "worn",
     "requested", "commissioned", "inspired", "returned", "brought", "loved", "taken")
)  # fmt: skip
_ELSEWHERE = frozenset(("about", "without", "like", "unlike", "than", "per", "via", "regarding", "concerning", "after",
                        "until", "since"))  # fmt: skip
_BESIDE = frozenset(("front", "midst", "middle", "care", "presence", "company", "ahead", "out", "charge"))
_PHOTOGRAPHING = frozenset(("taking", "snapping", "shooting", "capturing"))
_PORTRAYING = _PHOTOGRAPHING | {"painting", "sketching", "drawing"}
_CALLS = frozenset(("phone", "telephone", "call", "email", "chat", "radio", "online", "letters"))
_THOSE = frozenset(("elderly", "injured", "wounded", "homeless", "sick", "needy", "poor"))
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['-][^\W\d_]+)*(?:(?<=s)')?|[,;:.()/–—-]")
_LEADING = re.compile(
    r"\b(?:leading|guiding|teaching|chairing|moderating|facilitating|hosting|addressing|instructing)(?: [a-z'-]+){0,3}? "
    r"(?:tours?|classes|sessions?|workshops?|seminars?|lessons?|meetings?|rehearsals?|parades?|discussions?|debates?|panels?"
    r"|hikes?|expeditions?|ceremony|orchestra)\b"
)
_CROWDED = re.compile(
    r"\b(?:crowded|packed|thronged) (?:[a-z'-]+ )?(?:market|street|bar|room|hall|station|platform|square|restaurant|cafe"
    r"|café|stadium|train|tram|bus|subway|theater|theatre|auditorium|classroom|club|beach|plaza|bazaar|mall|airport"
    r"|arena|church|courtroom|courthouse|ward|clinic|pub|shop|store|office|pavement|sidewalk|stand|stands|gallery)s?\b"
)
_AGENT = re.compile(r"\w+(?:ologist|ician|smith|worker|goer|grapher|mate|person|people|women|men)")
_MODELS = re.compile(
    r"\b(?:photographing|directing|dressing|styling|posing|shooting|sketching|painting|filming|fitting|fashion|life)"
    r"(?: (?:a|an|the|two|three|several|live|nude|of))* models?\b"
)  # elsewhere they are of houses and of data
_AGENTIVE = re.compile(r"[^\W\d]{3,}(?:er|or|ist|ant|ee|ian|eer)s?")
_SINGULAR_ENDINGS = ("ss", "us", "is")


def shows_several(subject: str) -> bool:
    """Whether a subject or a scene, in any case, shows more people than one: see above."""
    text = " ".join(subject.casefold().split()).replace("’", "'")
    shown = noun(text)
    before, _, rest = text.partition(shown)
    if _is_several(shown.split(), singular_article=before.split()[-1:] in (["a"], ["an"])):
        return True
    if any(pattern.search(rest) for pattern in (_LEADING, _CROWDED, _MODELS)):
        return True
    words = _TOKEN.findall(rest)
    return any(_is_there(words, at) for at in range(len(words)))


def _is_several(head: Sequence[str], *, singular_article: bool) -> bool:
    """Of who is named first."""
    if head[0] in _NUMBERS or (head[0].isdigit() and head[0] != "1"):
        return True
    for at, word in enumerate(head[1:-1], start=1):
        if word in ("and", "&", "plus") and (is_person(head[at - 1]) or head[at + 1] in _DETERMINERS):
            return True
    named = head[: head.index("of")] if "of" in head[1:] else head
    last = named[-1].strip(",.;")
    owners = [word.removesuffix("'s") for word in named[:-1] if word.endswith("'s")]
    if owners and singular(last) in word_list("body"):  # a person's hands
        last = owners[0]
    if last in _GROUPS:
        return True
    if singular_article or not last.endswith("s") or last.endswith(_SINGULAR_ENDINGS):
        return False
    # "nurse checks charts" is one, "student nurses" are several
    does = any(is_person(one) and other.endswith("s") for one, other in zip(named, named[1:-1], strict=False))
    return is_person(last) or not does


def is_person(word: str) -> bool:
    """Whether a word names a person or people, in any number; hyphens do not matter."""
    bare = word.replace("-", "").removesuffix("'")
    return bool({bare, singular(bare)} & word_list("people")) or _AGENT.fullmatch(singular(bare)) is not None


def _is_there(words: Sequence[str], at: int) -> bool:
    """Whether a word of the scene names somebody who is shown."""
    word, behind = words[at], words[at + 1 : at + 5]
    following = behind[0] if behind else "."
    if word in _THOSE:
        return words[at - 1 : at] == ["the"] and _ends_before(following)
    if word.endswith(("'s", "s'")):
        owner = word.removesuffix("'").removesuffix("'s")
        is_dressed = any(each in _FASTENING for each in words[:at])
        return (is_person(owner) or owner in ("speaker", "model", "player")) and _owns_a_body(behind, is_dressed)
    start = _start(words, at)
    if not (is_person(word) or _is_met(words, start, word)) or (word in _GROUPS and following == "of"):
        return False
    described = words[start:at]
    is_one = singular(word) == word and word not in _WITHOUT_ARTICLE
    if is_one and not (_DETERMINERS & {*described}):
        return False  # patient records
    # a customer waits; a customer record
    is_verb = bool(_ONE & {*described}) and following.endswith("s") and not following.endswith(_SINGULAR_ENDINGS)
    is_verb |= words[start - 1 : start] != [] and words[start - 1] in _HELPING  # a colleague push a stretcher
    if (is_one or word in _WITHOUT_ARTICLE) and not _ends_before(following) and not is_verb:
        return False
    return not (_AWAY & {*described}) and _is_put_there(words, start, word, following)


def _is_met(words: Sequence[str], start: int, word: str) -> bool:
    """Whether a word that is not listed names somebody by its ending and by what is done with them."""
    link, doing = ["", "", *words[:start]][-1], ["", "", *words[:start]][-2]
    return _AGENTIVE.fullmatch(word) is not None and (
        link in _MEETING or (link in ("to", "with", "at") and doing in _TALKING)
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
        if is_dressed and {word, singular(word)} & _CLOTHES:
            return True
    return False


def _start(words: Sequence[str], at: int) -> int:
    """Where what is said of a person begins: at the article, or behind the verb or the preposition."""
    while at > 0:
        word = words[at - 1]
        if word in _DETERMINERS:
            return at - 1 if words[at - 2 : at - 1] not in (["the"], ["an"], ["a"]) else at - 2
        if not word[0].isalnum() or word in _PREPOSITIONS or word in ("and", "or", "while", "when", "where"):
            return at
        if _is_verb(words, at - 1):
            return at
        at -= 1
    return 0


def _is_verb(words: Sequence[str], at: int) -> bool:
    """Whether it is what somebody does; "visiting" in "with visiting officials" is not."""
    word = words[at]
    if not word.endswith("ing") or word in _NO_VERBS:
        return False
    before = words[at - 1] if at else "-"
    if word in _ALSO_NOUNS and before[0].isalnum():
        return False
    return before not in _PREPOSITIONS or before in ("by", "while", "after", "before", "of")


def _is_put_there(words: Sequence[str], start: int, word: str, following: str) -> bool:
    """Whether the verb or the preposition before a person puts them into the scene."""
    while start > 1 and words[start - 1] in ("and", "or", "nor"):  # the same as of whom stands before
        start = _start(words, start - 2)
    if start == 0:
        return True
    link, before = words[start - 1], words[: start - 1]
    doing = next((verb for at, verb in reversed([*enumerate(before)]) if _is_verb(before, at)), "")
    last = singular(before[-1]) if before else ""
    own = {singular(each) for each in before[-5:]}
    match link:
        case "of":
            return _is_of(words, start, last, doing)
        case "for":
            return doing not in _MAKING
        case "from":
            return doing in _TAKING and (doing == "taking" or not own & word_list("traces"))
        case "to":
            return doing not in _SENDING and last not in _CALLS
        case "with":
            return last not in _CALLS
        case "by":
            return last not in word_list("traces") and last not in _MADE
        case "on":
            return last not in word_list("traces")
        case "as":
            return following[0].isalnum() and following not in _PREPOSITIONS
        case "before":
            return not following[0].isalnum() or following in _PREPOSITIONS
        case "in" | "into":
            return word != "group"
    return link not in _ELSEWHERE and link not in _AFAR


def _is_of(words: Sequence[str], start: int, last: str, doing: str) -> bool:
    """Whether "... of people" shows them."""
    if last in _QUANTITIES or (last == "and" and start > 2):
        at = start - 2
        return _is_put_there(words, _start(words, at), last, ".")
    if last in ("photo", "photograph", "picture", "image", "shot", "snapshot") and doing in _PHOTOGRAPHING:
        return True
    if last == "portrait" and doing in _PORTRAYING:
        return True
    return last in word_list("body") - word_list("traces") or last in _BESIDE
