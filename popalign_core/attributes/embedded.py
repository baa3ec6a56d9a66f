"""The embedded model's own classifier as an attribute reader."""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import ResNetForImageClassification

from popalign_core.attributes.reader import FaceReading
from popalign_core.portraits import weights_folder
from popalign_core.portraits.classifier import HEADS, predict_logits, split_heads
from popalign_core.portraits.pictures import SIZE

FACE_BOX_SHARE = (0.2, 0.1, 0.6, 0.75)
"""The portraits are aligned, so a face is always here: x, y, width, height as shares of the picture."""


class PortraitsReader:
    """Reads face, gender and race off 64 px pictures of the embedded model; it knows nothing of other pictures.

    Attributes:
        name: "portraits".
        version: Of the shipped weights.
        axes: Axis name to classes.
    """

    name = "portraits"
    version = "1"

    def __init__(self, device: str = "cpu", folder: Path | None = None) -> None:
        self.axes: dict[str, tuple[str, ...]] = {head: classes for head, classes in HEADS.items() if head != "face"}
        folder = folder or weights_folder() / "classifier"
        self._device = torch.device(device)
        self._model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).to(self._device).eval()
        self._temperatures = json.loads((folder / "calibration.json").read_text())["temperatures"]

    def read(self, pixels_u8: NDArray[np.uint8]) -> list[FaceReading]:
        """Read `[N, H, W, 3]` uint8 pictures, one reading each. Other sizes are scaled to 64 px."""
        if len(pixels_u8) == 0:
            return []
        height, width = pixels_u8.shape[1:3]
        logits = split_heads(predict_logits(self._model, _resize(pixels_u8)))
        shares = {head: (values / self._temperatures[head]).softmax(1).numpy() for head, values in logits.items()}
        left, top, wide, high = FACE_BOX_SHARE
        box = (left * width, top * height, wide * width, high * height)
        readings = []
        for i, score in enumerate(shares["face"][:, 1]):
            found = bool(score >= 0.5)
            if not found:
                readings.append(FaceReading(0, None, float(score), {}))
                continue
            probabilities = {
                axis: dict(zip(classes, map(float, shares[axis][i]), strict=True))
                for axis, classes in self.axes.items()
            }
            readings.append(FaceReading(1, box, float(score), probabilities))
        return readings


def _resize(pixels_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels_u8.shape[1:3] == (SIZE, SIZE):
        return pixels_u8
    scaled = [Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.LANCZOS) for pixels in pixels_u8]
    return np.stack([np.asarray(image) for image in scaled])
