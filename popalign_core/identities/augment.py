"""Identity augmentation: every neutral prompt gains one child for each cell of the axes' product."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.prompts.benchmarks import benchmarks_of
from popalign_core.prompts.grammar import fill, in_sentence, prompt_id, prompt_table, without_determiner
from popalign_core.prompts.similar import split_subject


def augment_prompts(prompts: pd.DataFrame, axes: Sequence[Axis]) -> pd.DataFrame:
    """Add identity-specific children to the neutral prompts.

    A child has its parent's carrier, so that preferred and dispreferred images differ in who is shown and not in
    style. The identity stands in a column; it need not be parsed back out of the text.

    Args:
        prompts: A `prompts` table with neutral and generic rows.
        axes: The attributes. Unless an axis has a phrase of its own, their words stand before the subject in reversed
            order: the axes (gender, race) give "a black female doctor".

    Returns:
        The input rows, then the children (kind `specific`, the parent's split and subject) parent by parent.

    Raises:
        InputError: When there is no axis, or two cells of one prompt read the same.
    """
    if not axes:
        raise InputError("there is no axis to augment the prompts with; configure at least one")
    neutral = prompts[benchmarks_of(prompts) == "neutral"]
    children = [child for parent in neutral.to_dict("records") for child in _children(parent, axes)]
    return pd.concat([prompts, prompt_table(children)], ignore_index=True)


def augment_benchmarks(prompts: pd.DataFrame, axes: Mapping[str, Sequence[Axis]]) -> pd.DataFrame:
    """Put the identity-specific prompts of benchmarks in place of the subjects that they are made of.

    Args:
        prompts: A `prompts` table; rows of kind `specific` that name no identity are such subjects.
        axes: Benchmark -> the axes that its identities vary over.

    Returns:
        The other rows, then the children as `augment_prompts` makes them. Their parents, which are not sampled
        themselves, are in `parent_id` alone: variants of one subject are not independent.

    Raises:
        InputError: When a benchmark has no axis, or two cells of one subject read the same.
    """
    is_subject = (prompts["kind"] == "specific") & prompts["parent_id"].isna()
    parents = prompts[is_subject].to_dict("records")
    children = [child for parent in parents for child in _children(parent, axes[parent["benchmark"]])]
    return pd.concat([prompts[~is_subject], prompt_table(children)], ignore_index=True)


def _children(parent: dict[Any, Any], axes: Sequence[Axis]) -> list[dict[str, Any]]:
    carrier = parent["template"]
    benchmark = "specific" if parent["kind"] == "neutral" else parent["benchmark"]
    children = []
    texts = {parent["text"]}
    for classes in product(*(axis.classes for axis in axes)):
        text = fill(carrier, identity_phrase(parent["subject"], axes, classes))
        if text in texts:
            raise InputError(f"the identity {classes} gives {text!r} a second time; give each class words of its own")
        texts.add(text)
        children.append(
            {
                **parent,
                "prompt_id": prompt_id(text, "specific", parent["split"], benchmark),
                "text": text,
                "kind": "specific",
                "identity": {axis.name: name for axis, name in zip(axes, classes, strict=True)},
                "parent_id": parent["prompt_id"],
                "benchmark": benchmark,
            }
        )
    return children


def identity_phrase(subject: str, axes: Sequence[Axis], classes: Sequence[str]) -> str:
    """A subject with an identity, by each axis's phrase, without article: "black female doctor".

    It is put to who is shown, not to the scene: "black female botanist - cataloging plants", "botanist who is black -
    cataloging plants".

    Args:
        subject: A determiner of its own gives way to the identity.
        axes: The first one joins the subject first, so its words stand next to it.
        classes: Of each axis; one without words leaves the phrase as it is.
    """
    subject = in_sentence(subject)
    shown, scene = split_subject(without_determiner(subject))
    if scene.startswith((" who ", " that ", " whose ")):  # "person who is kind" is who is shown
        shown, scene = shown + scene, ""
    phrase = ""
    for axis, name in zip(axes, classes, strict=True):
        if word := axis.word(name).strip():
            phrase = _fill_phrase(axis.phrase, {"{word}": word, "{subject}": phrase or shown})
    return phrase + scene if phrase else subject


def _fill_phrase(template: str, parts: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], template)
