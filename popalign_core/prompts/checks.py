"""What makes a prompt, or a table of prompts, acceptable."""

import re
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.prompts.benchmarks import benchmarks_of
from popalign_core.prompts.carriers import is_whole
from popalign_core.prompts.people import shows_several
from popalign_core.prompts.similar import SimilarTexts, head, heads
from popalign_core.prompts.words import identity_words_in

MAX_SUBJECT_WORDS = 6
"""Longer subjects are scenes rather than people, and push the identity words away from the noun."""
MAX_SCENE_WORDS = 40
"""Of a neutral prompt from a file; text encoders read about 50 words."""
MAX_PROMPT_CHARACTERS = 2000
"""Of a prompt that is used as it is: several times what any text encoder reads."""

_LETTER = "[A-Za-zÀ-ÖØ-öø-žȘ-țḀ-ỿ]"  # Latin ones: the word lists and the grammar are English
_PLAIN = re.compile(rf"{_LETTER}+(?:[ '’-]{_LETTER}+)*")
_PLAIN_SCENE = re.compile(rf"(?:{_LETTER}|[0-9 ,;:.()&/%'’\"“”–—-])*{_LETTER}(?:{_LETTER}|[0-9 ,;:.()&/%'’\"“”–—-])*")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]")


def check_prompts(prompts: pd.DataFrame, axes: Sequence[Axis]) -> None:
    """Refuse a prompt table that would spoil everything after it.

    Args:
        prompts: A `prompts` table, before or after augmentation.
        axes: The attributes; a neutral prompt must not name any of their classes.

    Raises:
        InputError: When the table is empty, holds an empty or a repeated prompt, has a neutral prompt that names
            an identity or reads like another of its split, or a subject in both the training and the evaluation split.
    """
    if prompts.empty:
        raise InputError(
            "the prompt list is empty (0 prompts); give prompts.train_subjects and prompts.eval_subjects, or "
            "prompts.train_lists and prompts.eval_lists"
        )
    blank = int((prompts["text"].map(canonical) == "").sum() + (prompts["subject"].map(canonical) == "").sum())
    if blank:
        raise InputError(f"{blank} prompt(s) have an empty text or subject; remove them")
    _check_duplicates(prompts)
    _check_neutral(prompts, axes)
    _check_leakage(prompts)


def canonical(text: str) -> str:
    """What two prompts or subjects are compared by: case and spacing do not make a difference."""
    return " ".join(text.split()).casefold()


def subject_fault(
    subject: str,
    axes: Sequence[Axis],
    taken: SimilarTexts,
    held_out: SimilarTexts,
    *,
    max_words: int = MAX_SUBJECT_WORDS,
    one_person: bool = True,
) -> str | None:
    """Why a subject that somebody else wrote cannot become a neutral prompt.

    Args:
        subject: Noun phrase, or a scene when more words are allowed.
        axes: The attributes it must not name.
        taken: The subjects accepted so far.
        held_out: The heads of the subjects kept for evaluation; see `similar.head`.
        max_words: At most so many; more than `MAX_SUBJECT_WORDS` allows scenes, with figures and commas.
        one_person: Whether only one may be shown.

    Returns:
        None when it is fine, else one of `not_plain_words`, `too_long`, `whole_prompt`, `names_identity`,
        `several_people`, `duplicate`, `held_out`.
    """
    is_scene = max_words > MAX_SUBJECT_WORDS
    if len(subject) > MAX_PROMPT_CHARACTERS or len(subject.split()) > max_words:
        return "too_long"
    if not (_PLAIN_SCENE if is_scene else _PLAIN).fullmatch(subject):
        return "not_plain_words"
    if is_whole(subject):
        return "whole_prompt"
    if identity_words_in(subject, axes):
        return "names_identity"
    if one_person and shows_several(subject):
        return "several_people"
    if taken.find(subject) is not None:
        return "duplicate"
    return "held_out" if held_out.find(head(subject)) is not None else None


def prompt_fault(text: str, taken: set[str]) -> str | None:
    """Why a prompt that is used as it is cannot be: `empty`, `too_long`, `unprintable`, `duplicate`; None if it can.

    Args:
        text: The prompt; any script, any characters that are one.
        taken: `canonical` forms of the prompts accepted so far. Near-duplicates are fine: benchmarks ask for "a red
            cube on a blue sphere" beside "a blue cube on a red sphere".
    """
    if not text.strip():
        return "empty"
    if len(text) > MAX_PROMPT_CHARACTERS:
        return "too_long"
    if _UNPRINTABLE.search(text):
        return "unprintable"
    return "duplicate" if canonical(text) in taken else None


def check_balance(themes: Sequence[str], name: str, largest_ratio: float = 2.0) -> None:
    """Refuse prompts of which one theme has many more than another.

    Args:
        themes: Of each prompt.
        name: Of the list they are in, for the message.
        largest_ratio: Prompts of the largest theme over those of the smallest, at most.

    Raises:
        InputError: Names both.
    """
    counts = Counter(themes).most_common()
    (most, n_most), (fewest, n_fewest) = counts[0], counts[-1]
    if n_most > largest_ratio * n_fewest:
        raise InputError(
            f"in {name} theme {most!r} has {n_most} prompts and {fewest!r} has {n_fewest}, over {largest_ratio:g} "
            "times as many; add prompts to the small theme, merge it into another, or leave the column of themes out"
        )


def _check_duplicates(prompts: pd.DataFrame) -> None:
    # a benchmark with a name of its own may ask for what another asks for
    names = benchmarks_of(prompts)
    keys = prompts.assign(text=prompts["text"].map(canonical), benchmark=names.where(names != prompts["kind"], ""))
    repeated = prompts["text"][keys.duplicated(["text", "benchmark"], keep="first")].tolist()
    if repeated:
        raise InputError(f"{len(repeated)} duplicate prompt(s), e.g. {_sample(repeated)}; keep each prompt once")
    alike = []
    for _, part in prompts[prompts["kind"] == "neutral"].groupby([prompts["split"], names], sort=False):
        taken = SimilarTexts()
        for subject in part["subject"]:
            if (other := taken.find(subject)) is not None:
                alike.append(f"{subject} ~ {other}")
            taken.add(subject)
    if alike:
        raise InputError(f"{len(alike)} neutral subject(s) say the same as another: {_sample(alike)}; keep one of each")


def _check_neutral(prompts: pd.DataFrame, axes: Sequence[Axis]) -> None:
    faults = []
    neutral = prompts[(prompts["kind"] == "neutral") | _is_subject(prompts)]
    for text, subject, template in zip(neutral["text"], neutral["subject"], neutral["template"], strict=True):
        words = identity_words_in(template.replace("{}", ""), axes) + identity_words_in(subject, axes)
        if words:
            faults.append(f"{text!r} names {', '.join(map(repr, words))}")
    whole = [subject for subject in neutral["subject"] if is_whole(subject)]
    if whole:
        raise InputError(
            f"{len(whole)} neutral subject(s) are whole prompts and would be put into another: {_sample(whole)}; give "
            "who is shown alone, since prompts.carrier brings the rest, or put them into a list, whose carrier is kept"
        )
    if faults:
        raise InputError(
            f"{len(faults)} neutral prompt(s) already name an identity: {'; '.join(faults[:5])}; "
            "reword them, or the base model's own choice cannot be measured"
        )


def _check_leakage(prompts: pd.DataFrame) -> None:
    subjects = {split: set(prompts["subject"][prompts["split"] == split].map(canonical)) for split in ("train", "eval")}
    both = sorted(subjects["train"] & subjects["eval"])
    trained = SimilarTexts(heads(_neutral_subjects(prompts, "train")))
    for subject in _neutral_subjects(prompts, "eval"):
        other = trained.find(head(subject))
        if other is not None and canonical(subject) not in both:
            both.append(f"{subject} ~ {other}")
    if both:
        raise InputError(
            f"{len(both)} subject(s) are in both the training and the evaluation split: {_sample(both)}; "
            "keep each in one, or the evaluation measures memory"
        )


def _neutral_subjects(prompts: pd.DataFrame, split: str) -> list[str]:
    is_neutral = (prompts["kind"] == "neutral") | _is_subject(prompts)
    return prompts["subject"][is_neutral & (prompts["split"] == split)].tolist()


def _is_subject(prompts: pd.DataFrame) -> "pd.Series[bool]":
    """Rows that identities are yet to be added to."""
    return (prompts["kind"] == "specific") & prompts["parent_id"].isna()


def _sample(values: list[str]) -> str:
    return ", ".join(map(repr, values[:5])) + (", ..." if len(values) > 5 else "")
