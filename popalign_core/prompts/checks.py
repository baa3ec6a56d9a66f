"""What makes a prompt, or a table of prompts, acceptable."""

import re
from collections.abc import Collection, Sequence

import pandas as pd

from popalign_core.config import Axis
from popalign_core.errors import InputError

MAX_SUBJECT_WORDS = 6
"""Longer subjects are scenes rather than people, and push the identity words away from the noun."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GENDERED = _words(
    """
    he him his himself she her hers herself mr mrs ms miss mister sir madam
    male males female females masculine feminine man men woman women gentleman gentlemen lady ladies guy guys gal dude
    boy boys girl girls boyfriend girlfriend husband wife housewife widow widower bride groom bridesmaid
    father mother dad mom mum son daughter brother sister uncle aunt nephew niece
    grandfather grandmother grandpa grandma king queen prince princess duke duchess countess baron baroness
    emperor empress lord actress waitress hostess stewardess seamstress governess heiress priestess goddess
    sorceress enchantress mistress headmistress headmaster postmistress abbess nun monk friar
    barmaid maid chambermaid milkmaid handmaid masseur masseuse chanteuse ballerina comedienne
    cowboy cowgirl busboy bellboy playboy showgirl matriarch patriarch
    """
)
# "fireman", "saleswomen", but not "human": words that end so without naming a gender are short or listed.
_MAN_WORD = re.compile(r"[a-z]{3,}m[ae]n")
_NOT_A_MAN = _words(
    "german norman ottoman shaman talisman caiman cayman specimen regimen acumen abdomen stamen bitumen albumen turkmen"
)
_SEVERAL_ANYWHERE = _words("and two three four five six several many both")
# Only as what is shown: a "family doctor" and a "police officer" are one person.
_SEVERAL_AS_HEAD = _words(
    "people couple pair trio duo team crew group crowd family staff band orchestra choir squad children police"
)
_SINGULAR_ENDINGS = ("ss", "us", "is")
_PLAIN = re.compile(r"[^\W\d_]+(?:[ '’-][^\W\d_]+)*")


def check_prompts(prompts: pd.DataFrame, axes: Sequence[Axis]) -> None:
    """Refuse a prompt table that would spoil everything after it.

    Args:
        prompts: A `prompts` table, before or after augmentation.
        axes: The attributes; a neutral prompt must not name any of their classes.

    Raises:
        InputError: When the table is empty, holds an empty or a repeated prompt, has a neutral prompt that names
            an identity, or a subject in both the training and the evaluation split.
    """
    if prompts.empty:
        raise InputError("the prompt list is empty (0 prompts); give prompts.train_subjects and prompts.eval_subjects")
    blank = int((prompts["text"].map(canonical) == "").sum() + (prompts["subject"].map(canonical) == "").sum())
    if blank:
        raise InputError(f"{blank} prompt(s) have an empty text or subject; remove them")
    _check_duplicates(prompts)
    _check_neutral(prompts, axes)
    _check_leakage(prompts)


def canonical(text: str) -> str:
    """What two prompts or subjects are compared by: case and spacing do not make a difference."""
    return " ".join(text.split()).casefold()


def identity_words_in(text: str, axes: Sequence[Axis]) -> list[str]:
    """The words of a text that name an identity: the axes' own and gendered English.

    Whole words only, so "female" is not "male" and "blacksmith" is not "black".

    Args:
        text: Any text.
        axes: Their class names and their words in prompts are looked for, with spaces or hyphens between words.

    Returns:
        The words found, as listed in the axis or in the text, without repeats.
    """
    phrases = {phrase for axis in axes for name in axis.classes for phrase in (name, axis.word(name)) if phrase.strip()}
    found = sorted(phrase for phrase in phrases if _phrase(phrase).search(text))
    words = re.findall(r"[^\W\d_]+", text.casefold())
    gendered = [word for word in words if word in _GENDERED or (_MAN_WORD.fullmatch(word) and word not in _NOT_A_MAN)]
    return list(dict.fromkeys((*found, *gendered)))


def subject_fault(subject: str, axes: Sequence[Axis], taken: Collection[str], held_out: Collection[str]) -> str | None:
    """Why a subject that a language model wrote cannot become a neutral training prompt.

    Args:
        subject: Noun phrase without article.
        axes: The attributes it must not name.
        taken: `canonical` forms of the subjects accepted so far.
        held_out: `canonical` forms of the subjects kept for evaluation.

    Returns:
        None when it is fine, else one of `not_plain_words`, `too_long`, `names_identity`, `several_people`,
        `duplicate`, `held_out`.
    """
    key = canonical(subject)
    if not _PLAIN.fullmatch(subject):
        return "not_plain_words"
    if len(key.split()) > MAX_SUBJECT_WORDS:
        return "too_long"
    if identity_words_in(subject, axes):
        return "names_identity"
    if _names_several_people(key):
        return "several_people"
    if key in taken:
        return "duplicate"
    return "held_out" if key in held_out else None


def _names_several_people(key: str) -> bool:
    if _SEVERAL_ANYWHERE & set(key.split()):
        return True
    head = re.split(r" (?:of|in|for|at|on|with|from|who) ", key, maxsplit=1)[0].split()[-1]
    return head in _SEVERAL_AS_HEAD or (head.endswith("s") and not head.endswith(_SINGULAR_ENDINGS))


def _phrase(phrase: str) -> re.Pattern[str]:
    body = r"[\s-]+".join(re.escape(word) for word in re.split(r"[\s-]+", phrase.strip()))
    return re.compile(rf"(?<!\w){body}(?!\w)", re.IGNORECASE)


def _check_duplicates(prompts: pd.DataFrame) -> None:
    keys = prompts["text"].map(canonical)
    repeated = prompts["text"][keys.duplicated(keep="first")].tolist()
    if repeated:
        raise InputError(f"{len(repeated)} duplicate prompt(s), e.g. {_sample(repeated)}; keep each prompt once")


def _check_neutral(prompts: pd.DataFrame, axes: Sequence[Axis]) -> None:
    faults = []
    for text in prompts["text"][prompts["kind"] == "neutral"]:
        words = identity_words_in(text, axes)
        if words:
            faults.append(f"{text!r} names {', '.join(map(repr, words))}")
    if faults:
        raise InputError(
            f"{len(faults)} neutral prompt(s) already name an identity: {'; '.join(faults[:5])}; "
            "reword them, or the base model's own choice cannot be measured"
        )


def _check_leakage(prompts: pd.DataFrame) -> None:
    subjects = {split: set(prompts["subject"][prompts["split"] == split].map(canonical)) for split in ("train", "eval")}
    both = sorted(subjects["train"] & subjects["eval"])
    if both:
        raise InputError(
            f"{len(both)} subject(s) are in both the training and the evaluation split: {_sample(both)}; "
            "keep each in one, or the evaluation measures memory"
        )


def _sample(values: list[str]) -> str:
    return ", ".join(map(repr, values[:5])) + (", ..." if len(values) > 5 else "")
