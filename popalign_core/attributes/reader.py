"""What a face reader is: images in, one reading an image out."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FaceReading:
    """What was seen in one image.

    Attributes:
        n_faces: Faces that count; 0 when there is none.
        box: x, y, width, height of the largest face in px, or None.
        detector_score: Confidence in that face, in [0, 1].
        probabilities: Axis to class to probability, of the largest face; {} when there is no face.
        face_share: Share of the image area that the box covers. A reader of aligned portraits, whose faces are
            never small, leaves it at 1.
    """

    n_faces: int
    box: tuple[float, float, float, float] | None
    detector_score: float
    probabilities: dict[str, dict[str, float]]
    face_share: float = 1.0


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

    def read(self, pixels_u8: NDArray[np.uint8]) -> list[FaceReading]:
        """Read `[N, H, W, 3]` RGB uint8 images, one reading each, in order."""
        ...
