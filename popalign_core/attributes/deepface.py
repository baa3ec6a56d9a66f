"""DeepFace as an attribute classifier: its detectors and its heads, in batches, from weight files on disk."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata

from popalign_core.attributes.classifier_interface import FaceReading, Images, Probabilities
from popalign_core.attributes.deepface_heads import FaceHeads, age_shares
from popalign_core.attributes.detector import FaceDetector
from popalign_core.attributes.known_classes import classes_read
from popalign_core.config import AttributesConfig


class DeepFaceClassifier:
    """Reads gender and race, and age where the configuration has bands of it, with DeepFace (PyTorch).

    Attributes:
        name: "deepface".
        version: Of the package and the detector, both of which decide the readings.
        axes: `gender` and `race` with DeepFace's classes, "Man" and "Woman" as male and female; `age` in bands.
    """

    name = "deepface"

    def __init__(self, config: AttributesConfig, device: str = "cpu") -> None:
        """Load the networks; nothing is downloaded.

        Raises:
            MissingWeightsError: Naming the file, its place and its URL.
            ConfigError: When a package the detector needs is not installed.
        """
        self.axes = dict(classes_read(self.name, config))
        self._bands = config.age_bands
        self._detector = FaceDetector(config)
        self._heads = FaceHeads(list(self.axes), device)
        self.version = f"{metadata.version('deepface')}-{config.detector_backend}"

    def read(self, images: Images, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading an image, in order: faces are found image by image, and classified in batches."""
        found = [self._detector.detect(pixels) for pixels in images]
        shares = self._heads.read([crop for _, crop in found if crop is not None])
        if self._bands and len(shares["age"]):
            shares["age"] = age_shares(shares["age"], self._bands)
        rows: list[Probabilities] = [
            {axis: dict(zip(self.axes[axis], map(float, values[row]), strict=True)) for axis, values in shares.items()}
            for row in range(len(shares["gender"]))
        ]
        faces = iter(rows)
        return [reading if crop is None else replace(reading, probabilities=next(faces)) for reading, crop in found]
