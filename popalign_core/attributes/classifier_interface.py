"""Interfaces of classifiers: of whole images, with a face detector, and of faces that are cut out already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Images: TypeAlias = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
"""`[H, W, 3]` RGB uint8 each, of any size; or one array `[N, H, W, 3]`."""

Probabilities: TypeAlias = dict[str, dict[str, float]]
"""Axis to class to probability."""

UNSURE = "unsure"
"""The class of an axis on which a classifier abstains: no axis has it, so `filter_readings` drops the image."""


@dataclass(frozen=True)
class FaceReading:
    """What was seen in one image.

    Attributes:
        n_faces: Faces that count; 0 when there is none.
        box: x, y, width, height of the largest face in px, or None.
        detector_score: Confidence in that face, in [0, 1].
        probabilities: Of the largest face, if there is one; and of the whole image on the axes of that.
        face_share: Share of the image area that the box covers. A classifier of aligned portraits, whose faces are
            never small, leaves it at 1.
        problem: Why nothing could be read, as a drop reason; None when the image was read.
    """

    n_faces: int
    box: tuple[float, float, float, float] | None
    detector_score: float
    probabilities: Probabilities
    face_share: float = 1.0
    problem: str | None = None


def unreadable(problem: str) -> FaceReading:
    """The reading of an image that could not be read, and why."""
    return FaceReading(0, None, 0.0, {}, 0.0, problem)


class AttributeClassifier(Protocol):
    """Finds faces and reads attributes off the largest one.

    Attributes:
        name: What it is.
        version: Changes whenever its readings may.
        axes: Axis name to the classes it can tell apart.
    """

    name: str
    version: str
    axes: dict[str, tuple[str, ...]]

    def read(self, images: Images, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading an image, in order; only people's labels need the ids of stored images."""
        ...


class FaceClassifier(Protocol):
    """Classifies faces that are cut out already; attributes as those of `AttributeClassifier`."""

    name: str
    version: str
    axes: dict[str, tuple[str, ...]]

    def classify(self, images: Sequence[NDArray[np.uint8]]) -> list[Probabilities]:
        """Probabilities on every axis, one an image `[H, W, 3]` RGB uint8, in order; none for no images."""
        ...


def abstain(classes: Sequence[str]) -> dict[str, float]:
    """The probabilities of an axis that a classifier leaves undecided."""
    return dict.fromkeys(classes, 0.0) | {UNSURE: 1.0}


def likeliest(probabilities: Mapping[str, float]) -> str:
    """The class of largest probability; the first of equal ones."""
    return max(probabilities, key=lambda name: probabilities[name])
