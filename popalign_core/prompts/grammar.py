"""Prompts without a language model: subjects from the configuration, put into one carrier template."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from popalign_core.config import PromptsConfig
from popalign_core.ids import content_id
from popalign_core.prompts.similar import split_subject
from popalign_core.prompts.words import word_list

PROMPT_COLUMNS = (
    "prompt_id", "text", "subject", "kind", "split", "identity", "parent_id", "template", "source", "benchmark",
)  # fmt: skip

_DETERMINER = re.compile(r"(?:a|an|the|some|two|three|four|several|many)\s+", re.IGNORECASE)
# Spelling and sound part ways: "an hour", "a unicycle", "a one-man band", "a ukulele".
_SILENT_H = re.compile(r"(?:hour|honest|hono|heir)", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(
    r"(?:uni(?![nmd])|us[eu]|uti|ubiq|ufo|ugand|ukul|ura|uro|eu|ewe|on(?:e|ce)\b)", re.IGNORECASE
)
_ARTICLES = frozenset(("A", "An", "The"))
_ORDINARY = re.compile(r"[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ]+(?:['’-][A-Za-zÀ-ÖØ-öø-ÿ]+)*,?")
_FIRST_IN_SCENE = re.compile(r"^( ?[-–—:;] ?)(A|An|The|In|At|On|With|[A-Z][a-z]+ing)\b")
_LETTERS_NAMED_WITH_A_VOWEL = "AEFHILMNORSX"


def write_prompts(config: PromptsConfig) -> pd.DataFrame:
    """Neutral and generic prompts for training and evaluation, offline.

    Args:
        config: Its four lists of subjects and its carrier.

    Returns:
        A `prompts` table in the order of the configuration. It is not checked: see `checks.check_prompts`.
    """
    wanted = (
        ("neutral", "train", config.train_subjects),
        ("neutral", "eval", config.eval_subjects),
        ("generic", "eval", config.generic_subjects),
        ("generic", "train", config.retained_subjects),
    )
    return prompt_table(
        neutral_or_generic_row(subject, kind, split, config.carrier, "grammar")
        for kind, split, subjects in wanted
        for subject in subjects
    )


def neutral_or_generic_row(subject: str, kind: str, split: str, carrier: str, source: str) -> dict[str, Any]:
    """One row of `prompts` that names no identity."""
    return _row(_text(carrier, subject, kind), subject, kind, split, carrier, source, kind)


def verbatim_row(text: str, split: str, benchmark: str = "generic") -> dict[str, Any]:
    """One row of `prompts` for a generic prompt that somebody else wrote, used as it is."""
    return _row(text, text, "generic", split, "{}", "list", benchmark)


def benchmark_row(subject: str, kind: str, carrier: str, benchmark: str) -> dict[str, Any]:
    """One row of `prompts` for a listed subject of a benchmark with a name of its own."""
    return _row(_text(carrier, subject, kind), subject, kind, "eval", carrier, "list", benchmark)


def with_carriers(prompts: pd.DataFrame, carriers: Mapping[str, str]) -> pd.DataFrame:
    """Put neutral subjects into the carriers that they were listed with.

    Args:
        prompts: A `prompts` table.
        carriers: Subject -> its own carrier; the others keep the usual one.

    Returns:
        The table; texts, ids and templates of those prompts are new.
    """
    if not carriers:
        return prompts
    rows: Sequence[Mapping[Any, Any]] = prompts.to_dict("records")
    return prompt_table(
        neutral_or_generic_row(row["subject"], "neutral", row["split"], carriers[row["subject"]], row["source"])
        if row["kind"] == "neutral" and row["subject"] in carriers
        else dict(row)
        for row in rows
    )


def _text(carrier: str, subject: str, kind: str) -> str:
    # a thing may be the Eiffel Tower
    return fill(carrier, subject if kind == "generic" else in_sentence(subject))


def prompt_id(text: str, kind: str, split: str, benchmark: str) -> str:
    """A prompt's id. What several benchmarks ask for is a prompt of each, with images of its own."""
    return content_id("prompt", text, kind, split, *([] if benchmark == kind else [benchmark]))


def _row(text: str, subject: str, kind: str, split: str, carrier: str, source: str, benchmark: str) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id(text, kind, split, benchmark),
        "text": text,
        "subject": subject,
        "kind": kind,
        "split": split,
        "identity": {},
        "parent_id": None,
        "template": carrier,
        "source": source,
        "benchmark": benchmark,
    }


def prompt_table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a `prompts` table; the columns are there even when no row is."""
    frame = pd.DataFrame(list(rows), columns=list(PROMPT_COLUMNS))
    # Without this a column of None alone or of strings and None changes dtype with its content.
    frame["parent_id"] = frame["parent_id"].astype(object)
    return frame


def fill(carrier: str, phrase: str) -> str:
    """Put who or what is shown into the carrier: `("a photo of {}", "black female doctor")`.

    Args:
        carrier: Template with one `{}`.
        phrase: Bare noun phrase, or one that brings its own determiner ("the moon").

    Returns:
        The prompt, its article right: "a photo of a black female doctor".
    """
    return carrier.replace("{}", with_article(" ".join(phrase.split())))


def in_sentence(subject: str) -> str:
    """A subject as it reads within a sentence: "Marine Engineer - Testing a pump", "marine engineer - testing a pump".

    Only ordinary words are lowered: not CEO, 3D or iOS, no names of languages and places, and beyond the first word
    only those of a head that has a capital at every word.
    """
    head, rest = split_subject(" ".join(subject.split()))
    words = head.split(" ")
    named = [word for word in words if len(word) > 3 or word[:1].isupper()]
    is_title = all(word[:1].isupper() or word[:1].isdigit() for word in named if word not in _ARTICLES)
    head = " ".join(_lowered(word) if at == 0 or is_title else word for at, word in enumerate(words))
    return head + _FIRST_IN_SCENE.sub(lambda found: found[1] + _lowered(found[2]), rest, count=1)


def _lowered(word: str) -> str:
    if word in _ARTICLES:
        return word.lower()
    key = word.lower()
    is_name = any(key in word_list(name) for name in ("origin", "names", "capitals"))
    return key if _ORDINARY.fullmatch(word) and not is_name else word


def without_determiner(phrase: str) -> str:
    """The phrase without the article or the number that it may begin with."""
    return _DETERMINER.sub("", " ".join(phrase.split()), count=1) if _DETERMINER.match(phrase) else phrase


def with_article(phrase: str) -> str:
    """Prefix "a" or "an" by sound, unless the phrase brings a determiner of its own."""
    if not phrase or _DETERMINER.match(phrase):
        return phrase
    return f"{'an' if _starts_with_a_vowel_sound(phrase) else 'a'} {phrase}"


def _starts_with_a_vowel_sound(phrase: str) -> bool:
    word = re.split(r"[\s-]", phrase, maxsplit=1)[0] or phrase
    if len(word) == 1 or (word.isupper() and len(word) <= 4):  # spelt out: "an MRI technician", "a UX designer"
        return word[0].upper() in _LETTERS_NAMED_WITH_A_VOWEL
    if _SILENT_H.match(phrase):
        return True
    return word[0].lower() in "aeiou" and not _CONSONANT_SOUND.match(phrase)
