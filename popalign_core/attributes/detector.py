"""Face detection with DeepFace's detectors."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from popalign_core.attributes.classifier_interface import FaceReading, unreadable
from popalign_core.attributes.deepface_files import DETECTOR_WEIGHTS, modeling, prepare, require_weights
from popalign_core.config import AttributesConfig
from popalign_core.errors import ConfigError

DETECTOR_FAILED = "detector_failed"
"""Drop reason: the detector could make nothing of the image."""

_CROP = (224, 224)
_SMALLEST_SIDE = 16
"""px. No detector finds a face in less, and some fail on it."""
_LARGEST_SIDE = 2048
"""px. Larger images are looked at scaled down: the detectors' own border makes four times the pixels of them."""


class FaceDetector:
    """Finds the face that counts in an image; needs no attribute weights."""

    def __init__(self, config: AttributesConfig) -> None:
        """Load the detector.

        Raises:
            MissingWeightsError: When one of the detector's files is absent.
            ConfigError: When a package it needs is not installed.
        """
        self._config = config
        backend = config.detector_backend
        for file, url in DETECTOR_WEIGHTS.get(backend, ()):
            require_weights(file, url)
        if backend == "skip":
            return
        try:
            modeling().build_model(task="face_detector", model_name=backend)
        except (ImportError, RuntimeError) as error:  # torchvision beside another torch raises the latter
            raise ConfigError(
                f"attributes.detector_backend = {backend!r} needs a package that is not installed or does not load "
                f"({error}); install it, or use 'opencv'"
            ) from error

    def detect(self, pixels_u8: NDArray[np.uint8]) -> tuple[FaceReading, NDArray[np.float32] | None]:
        """Find the largest face of one image that passes the thresholds, or the largest of all if none does.

        Args:
            pixels_u8: `[H, W, 3]` RGB uint8.

        Returns:
            A reading without probabilities, and the aligned face `[224, 224, 3]` BGR in [0, 1] as DeepFace's heads
            take it, or None. A second face counts only when it passes by itself: cascades see faces in shirt
            buttons. With the backend `skip` the whole image is one face of score 1.
        """
        height, width = pixels_u8.shape[:2]
        if min(height, width) < _SMALLEST_SIDE:
            return FaceReading(0, None, 0.0, {}, 0.0), None
        factor = min(1.0, _LARGEST_SIDE / max(height, width))
        try:
            faces = self._extract(pixels_u8 if factor == 1 else _scaled(pixels_u8, factor))
        except _detector_errors():
            return unreadable(DETECTOR_FAILED), None
        if not faces:
            return FaceReading(0, None, 0.0, {}, 0.0), None
        return self._choose(faces, height * width, factor)

    def _choose(
        self, faces: list[dict[str, Any]], image_area: int, factor: float
    ) -> tuple[FaceReading, NDArray[np.float32]]:
        shares = [_area(face) / factor**2 / image_area for face in faces]
        scores = [1.0 if self._config.detector_backend == "skip" else float(face["confidence"]) for face in faces]
        passing = [
            i
            for i, (share, score) in enumerate(zip(shares, scores, strict=True))
            if share >= self._config.min_face_share and score >= self._config.min_face_score
        ]
        largest = max(passing or range(len(faces)), key=shares.__getitem__)
        x, y, w, h = (float(faces[largest]["facial_area"][key]) / factor for key in "xywh")
        reading = FaceReading(max(len(passing), 1), (x, y, w, h), scores[largest], {}, shares[largest])
        return reading, _crop(faces[largest]["face"])

    def _extract(self, pixels_u8: NDArray[np.uint8]) -> list[dict[str, Any]]:
        prepare()
        from deepface.modules import detection, exceptions

        try:
            faces = detection.extract_faces(
                img_path=np.ascontiguousarray(pixels_u8[:, :, ::-1]),  # DeepFace takes BGR
                detector_backend=self._config.detector_backend,
                enforce_detection=True,  # otherwise an image without a face comes back as one face of score 0
            )
        except (exceptions.FaceNotDetected, exceptions.ImgNotFound):
            return []
        return [face for face in faces if _area(face) > 0 and min(face["face"].shape) > 0]


def crop_face(pixels_u8: NDArray[np.uint8], box: tuple[float, float, float, float], margin: float) -> NDArray[np.uint8]:
    """The face of an image with what is around it, for classifiers that DeepFace's narrow crops do not suit.

    Args:
        pixels_u8: `[H, W, 3]`.
        box: x, y, width, height in px.
        margin: Shares of width and height that are added on each side, as far as the image goes.
    """
    x, y, w, h = box
    top, bottom = max(0, round(y - margin * h)), round(y + (1 + margin) * h)
    left, right = max(0, round(x - margin * w)), round(x + (1 + margin) * w)
    return pixels_u8[top : max(bottom, top + 1), left : max(right, left + 1)]


def _detector_errors() -> tuple[type[Exception], ...]:
    """What detectors raise for images they cannot handle; a device out of memory is not among them."""
    import cv2

    return (cv2.error, ValueError, IndexError, ZeroDivisionError)


def _scaled(pixels_u8: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    import cv2

    height, width = pixels_u8.shape[:2]
    size = max(_SMALLEST_SIDE, round(width * factor)), max(_SMALLEST_SIDE, round(height * factor))
    return np.asarray(cv2.resize(pixels_u8, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _area(face: dict[str, Any]) -> float:
    return float(face["facial_area"]["w"]) * float(face["facial_area"]["h"])


def _crop(face_rgb: NDArray[Any]) -> NDArray[np.float32]:
    """As `DeepFace.analyze` prepares a face: BGR, scaled to fit, padded black."""
    from deepface.modules import preprocessing

    return np.asarray(preprocessing.resize_image(img=face_rgb[:, :, ::-1], target_size=_CROP)[0], dtype=np.float32)
