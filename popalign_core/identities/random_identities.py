"""A random identity for each image: what random identity injection and Fair Diffusion put into a neutral prompt."""

from collections.abc import Mapping, Sequence

import numpy as np

from popalign_core.config import Axis
from popalign_core.identities.augment import identity_phrase
from popalign_core.ids import image_seed
from popalign_core.prompts.grammar import fill


def draw_identity(axes: Sequence[Axis], seed: int) -> dict[str, str]:
    """A class of each axis, by the axis's target distribution, independently.

    Args:
        axes: The attributes.
        seed: Of the image, so that neither batch nor order decide.

    Returns:
        Axis -> class.
    """
    rng = np.random.default_rng(image_seed(seed, "identity", 0))
    return {axis.name: str(rng.choice(axis.classes, p=np.array(axis.shares()) / sum(axis.shares()))) for axis in axes}


def injected_text(template: str, subject: str, axes: Sequence[Axis], identity: Mapping[str, str]) -> str:
    """A neutral prompt with an identity in it, phrased as `augment_prompts` phrases it."""
    return fill(template, identity_phrase(subject, axes, [identity[axis.name] for axis in axes]))


def edit_concepts(axes: Sequence[Axis], identity: Mapping[str, str], concept: str) -> list[tuple[str, float]]:
    """What Fair Diffusion steers an image by: towards the drawn class, on an axis of two away from the other.

    With more classes than two there is no opposite, so it is steered towards the drawn one only.

    Args:
        axes: The attributes.
        identity: Axis -> class drawn.
        concept: Template such as "{} person".

    Returns:
        (text, +1 or -1) of each concept; equally many for every identity.
    """
    found = []
    for axis in axes:
        drawn = identity[axis.name]
        found.append((concept.replace("{}", axis.word(drawn)), 1.0))
        if len(axis.classes) == 2:
            other = next(name for name in axis.classes if name != drawn)
            found.append((concept.replace("{}", axis.word(other)), -1.0))
    return found
