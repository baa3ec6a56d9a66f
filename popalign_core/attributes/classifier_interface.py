"""What a face reader is: pictures in, one reading a picture out; and what a classifier of faces found elsewhere is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pictures: TypeAlias = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
"""`[H, W, 3]` RGB uint8 each, of any size; or one array `[N, H, W, 3]`."""

Probabilities: TypeAlias = dict[str, dict[str, float]]
"""Axis to class to probability."""

UNSURE = "unsure"
"""The class of an axis on which a reader abstains: no axis has it, so `filtering.judge` drops the reading."""


@dataclass(frozen=True)
class FaceReading:
    """What was seen in one image.

    Attributes:
        n_faces: Faces that count; 0 when there is none.
        box: x, y, width, height of the largest face in px, or None.
        detector_score: Confidence in that face, in [0, 1].
        probabilities: Of the largest face, if there is one; and of the whole picture on the axes of that.
        face_share: Share of the image area that the box covers. A reader of aligned portraits, whose faces are
            never small, leaves it at 1.
        problem: Why nothing could be read, as a drop reason; None when the image was looked at.
    """

    n_faces: int
    box: tuple[float, float, float, float] | None
    detector_score: float
    probabilities: Probabilities
    face_share: float = 1.0
    problem: str | None = None


def unreadable(problem: str) -> FaceReading:
    """The reading of an image that could not be looked at, and why."""
    return FaceReading(0, None, 0.0, {}, 0.0, problem)


class AttributeReader(Protocol):
    """Finds faces and reads attributes off the largest one.

    Attributes:
        name: What it is.
        version: Changes whenever its readings may.
        axes: Axis name to the classes it can tell apart.
    """

    name: str
    version: str
    axes: dict[str, tuple[str, ...]]

    def read(self, pictures: Pictures, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading a picture, in order; only people's labels need the ids of stored images."""
        ...


class FaceClassifier(Protocol):
    """Tells classes of pictures that somebody else cut out; attributes as those of `AttributeReader`."""

    name: str
    version: str
    axes: dict[str, tuple[str, ...]]

    def classify(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Probabilities]:
        """Probabilities on every axis, one a picture `[H, W, 3]` RGB uint8, in order; none for no pictures."""
        ...


def abstain(classes: Sequence[str]) -> dict[str, float]:
    """What a reader says of an axis on which it does not decide."""
    return dict.fromkeys(classes, 0.0) | {UNSURE: 1.0}


def likeliest(probabilities: Mapping[str, float]) -> str:
    """The class of largest probability; the first of equal ones."""
    return max(probabilities, key=lambda name: probabilities[name])
