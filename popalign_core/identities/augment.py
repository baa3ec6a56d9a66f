"""Identity augmentation: every neutral prompt gains one child for each cell of the axes' product."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pandas as pd

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from popalign_core.prompts.grammar import fill, prompt_table


def augment_prompts(prompts: pd.DataFrame, axes: Sequence[Axis], carrier: str) -> pd.DataFrame:
    """Add identity-specific children to the neutral prompts.

    Parent and child share the carrier, so that preferred and dispreferred images differ in who is shown and not in
    style. The identity stands in a column; nobody has to read it back out of the text.

    Args:
        prompts: A `prompts` table with neutral and generic rows.
        axes: The attributes. Their words stand before the subject in reversed order: the axes (gender, race) give
            "a black female doctor".
        carrier: The template that the neutral prompts were written with.

    Returns:
        The input rows, then the children (kind `specific`, the parent's split and subject) parent by parent.

    Raises:
        InputError: When there is no axis, a neutral prompt was written with another carrier, or two cells of one
            prompt read the same.
    """
    if not axes:
        raise InputError("there is no axis to augment the prompts with; configure at least one")
    neutral = prompts[prompts["kind"] == "neutral"]
    foreign = sorted(set(neutral["template"]) - {carrier})
    if foreign:
        raise InputError(
            f"neutral prompts were written with the template {foreign[0]!r}, the specific ones would be with "
            f"{carrier!r}; use one template for both, or its style leaks into the preference"
        )
    children = [child for parent in neutral.to_dict("records") for child in _children(parent, axes, carrier)]
    return pd.concat([prompts, prompt_table(children)], ignore_index=True)


def _children(parent: dict[Any, Any], axes: Sequence[Axis], carrier: str) -> list[dict[str, Any]]:
    children = []
    texts = {parent["text"]}
    for classes in product(*(axis.classes for axis in axes)):
        text = fill(carrier, parent["subject"], identity_words(axes, classes))
        if text in texts:
            raise InputError(f"the identity {classes} gives {text!r} a second time; give each class words of its own")
        texts.add(text)
        children.append(
            {
                **parent,
                "prompt_id": content_id("prompt", text, "specific", parent["split"]),
                "text": text,
                "kind": "specific",
                "identity": {axis.name: name for axis, name in zip(axes, classes, strict=True)},
                "parent_id": parent["prompt_id"],
            }
        )
    return children


def identity_words(axes: Sequence[Axis], classes: Sequence[str]) -> list[str]:
    """The words of an identity as they stand before the subject: those of the last axis first."""
    words = [axis.word(name) for axis, name in zip(axes, classes, strict=True)]
    return [word for word in reversed(words) if word]
