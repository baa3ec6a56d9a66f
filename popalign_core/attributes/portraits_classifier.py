"""The embedded model's own attribute classifier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import ResNetForImageClassification

from popalign_core.attributes.classifier_interface import FaceReading, Images
from popalign_core.models.weights_check import PartFolder, load_module
from popalign_core.portraits import weights_folder
from popalign_core.portraits.classifier import HEADS, predict_logits, split_heads
from popalign_core.portraits.rendering import SIZE

FACE_BOX_SHARE = (0.2, 0.1, 0.6, 0.75)
"""The portraits are aligned, so a face is always here: x, y, width, height as shares of the image."""


class PortraitsFaceClassifier:
    """Reads face, gender and race off 64 px images of the embedded model; it knows nothing of other images.

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
        part = PartFolder("the embedded classifier", folder, "run `popalign portraits train --data DIR`, or restore it")
        self._model = load_module(ResNetForImageClassification, part, torch.float32).to(self._device).eval()
        self._temperatures = _read_temperatures(part)

    def read(self, images: Images, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading an image, in order. Images of other sizes are scaled to 64 px."""
        if len(images) == 0:
            return []
        logits = split_heads(predict_logits(self._model, np.stack([_resize(pixels) for pixels in images])))
        shares = {head: (values / self._temperatures[head]).softmax(1).numpy() for head, values in logits.items()}
        readings = []
        for i, (pixels, score) in enumerate(zip(images, shares["face"][:, 1], strict=True)):
            found = bool(score >= 0.5)
            if not found:
                readings.append(FaceReading(0, None, float(score), {}))
                continue
            probabilities = {
                axis: dict(zip(classes, map(float, shares[axis][i]), strict=True))
                for axis, classes in self.axes.items()
            }
            readings.append(FaceReading(1, _face_box(*pixels.shape[:2]), float(score), probabilities))
        return readings


def _read_temperatures(part: PartFolder) -> dict[str, float]:
    found = part.read_settings("calibration.json").get("temperatures")
    known = found if isinstance(found, dict) else {}
    if not all(isinstance(known.get(head), float) and known[head] > 0 for head in HEADS):
        raise part.refusal(f"calibration.json has the temperatures {found}, not one per head above 0")
    return known


def _face_box(height: int, width: int) -> tuple[float, float, float, float]:
    left, top, wide, high = FACE_BOX_SHARE
    return left * width, top * height, wide * width, high * height


def _resize(pixels_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels_u8.shape[:2] == (SIZE, SIZE):
        return pixels_u8
    return np.asarray(Image.fromarray(pixels_u8).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
