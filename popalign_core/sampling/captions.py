"""Which text each image is sampled for: its prompt's own, or one that a training-free baseline makes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from popalign_core.config import Axis, SamplingConfig
from popalign_core.identities.random_identities import draw_identity, edit_concepts, injected_text
from popalign_core.ids import content_id


@dataclass(frozen=True)
class CaptionPlan:
    """The captions of all images of a sample.

    Attributes:
        texts: Caption id -> text, of all that must be embedded besides the empty one; a prompt's own has its id.
        of_image: Caption id of each image.
        concepts: (caption id, direction) of what each image is steered by; empty for an image that is not.
    """

    texts: Mapping[str, str]
    of_image: Sequence[str]
    concepts: Sequence[Sequence[tuple[str, float]]]


def plan_captions(
    prompts: pd.DataFrame, images: pd.DataFrame, axes: Sequence[Axis], config: SamplingConfig
) -> CaptionPlan:
    """Say what every image is sampled for; only neutral prompts are ever changed.

    Args:
        prompts: `prompts` table.
        images: `prompt_id` and `seed` of each image.
        axes: The attributes an identity is drawn from.
        config: `inject_identity`, `fair_diffusion`.
    """
    by_id = prompts.set_index("prompt_id").to_dict("index")
    texts = {str(prompt_id): str(row["text"]) for prompt_id, row in by_id.items()}
    of_image, concepts = [], []
    for prompt_id, seed in zip(images["prompt_id"], images["seed"], strict=True):
        row, caption, steered = by_id[prompt_id], str(prompt_id), list[tuple[str, float]]()
        if row["kind"] == "neutral" and config.inject_identity:
            text = injected_text(row["template"], row["subject"], axes, draw_identity(axes, int(seed)))
            caption = _add(texts, text)
        elif config.fair_diffusion is not None and _is_looked_up(row, config.fair_diffusion.subjects):
            found = edit_concepts(axes, draw_identity(axes, int(seed)), config.fair_diffusion.concept)
            steered = [(_add(texts, text), direction) for text, direction in found]
        of_image.append(caption)
        concepts.append(steered)
    return CaptionPlan(texts, of_image, concepts)


def _is_looked_up(row: Mapping[Any, Any], subjects: Sequence[str]) -> bool:
    return row["kind"] == "neutral" and (not subjects or row["subject"] in subjects)


def _add(texts: dict[str, str], text: str) -> str:
    caption = content_id("caption", text)
    texts[caption] = text
    return caption
