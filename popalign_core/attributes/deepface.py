"""DeepFace as an attribute reader: its detectors, and its gender and race heads from weight files on disk.

DeepFace itself would download what it lacks, create folders in the home directory on import, pick a deep-learning
framework by chance, and go image by image. Here it does none of that: only its inner modules are imported, every
file it needs is looked for first, and the heads take batches.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popalign_core.attributes.reader import FaceReading
from popalign_core.config import AttributesConfig
from popalign_core.errors import ConfigError, MissingWeightsError

_RELEASE = "https://github.com/serengil/deepface_models/releases/download/v1.0/"
HEAD_WEIGHTS = {
    "gender": ("gender_model_weights.pth", f"{_RELEASE}gender_model_weights.pth"),
    "race": ("race_model_single_batch.pth", f"{_RELEASE}race_model_single_batch.pth"),
}
"""Axis -> file and where to get it (about 512 MB each)."""
DETECTOR_WEIGHTS = {
    "yunet": (
        "face_detection_yunet_2023mar.onnx",
        "https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",
    ),
    "retinaface": ("retinaface.h5", f"{_RELEASE}retinaface.h5"),
}
"""Detectors that need a file; `opencv`, `fastmtcnn` and `skip` do not."""

# In the order of the heads' outputs.
GENDERS = ("female", "male")
RACES = ("asian", "indian", "black", "white", "middle eastern", "latino hispanic")

_HEAD_BATCH = 16
"""Faces a forward pass; VGG-Face keeps about 50 MB of activations for each."""
_CROP = (224, 224)


class DeepFaceReader:
    """Reads gender and race with DeepFace (PyTorch backend).

    Attributes:
        name: "deepface".
        version: Of the package and the detector, both of which decide the readings.
        axes: `gender` and `race` with DeepFace's classes, "Man" and "Woman" as male and female.
    """

    name = "deepface"

    def __init__(self, config: AttributesConfig) -> None:
        """Look for all weights; nothing is downloaded.

        Raises:
            MissingWeightsError: Naming the file, its place and its URL.
            ConfigError: When a package the detector needs is not installed.
        """
        for file, url in HEAD_WEIGHTS.values():
            _require_weights(file, url)
        self._detector = FaceDetector(config)
        self.axes: dict[str, tuple[str, ...]] = {"gender": GENDERS, "race": RACES}
        self.version = f"{_deepface_version()}-{config.detector_backend}"

    def read(self, pixels_u8: NDArray[np.uint8]) -> list[FaceReading]:
        """Read `[N, H, W, 3]` RGB uint8 images, one reading each, in order."""
        found = [self._detector.detect(pixels) for pixels in pixels_u8]
        crops = [crop for _, crop in found if crop is not None]
        probabilities = iter(_read_heads(crops))
        return [
            reading if crop is None else _with_probabilities(reading, next(probabilities)) for reading, crop in found
        ]


class FaceDetector:
    """The detection half of the reader; needs no attribute weights."""

    def __init__(self, config: AttributesConfig) -> None:
        """Load the detector.

        Raises:
            MissingWeightsError: When the detector's file is absent.
            ConfigError: When a package it needs is not installed.
        """
        self._config = config
        backend = config.detector_backend
        if backend in DETECTOR_WEIGHTS:
            _require_weights(*DETECTOR_WEIGHTS[backend])
        if backend == "skip":
            return
        try:
            _modeling().build_model(task="face_detector", model_name=backend)
        except ImportError as error:
            raise ConfigError(
                f"attributes.detector_backend = {backend!r} needs a package that is not installed ({error}); "
                "install it, or use 'opencv'"
            ) from error

    def detect(self, pixels_u8: NDArray[np.uint8]) -> tuple[FaceReading, NDArray[np.float32] | None]:
        """Find the largest face of one image that passes the thresholds, or the largest of all if none does.

        Args:
            pixels_u8: `[H, W, 3]` RGB uint8.

        Returns:
            A reading without probabilities, and the aligned face `[224, 224, 3]` BGR in [0, 1] as the heads take
            it, or None. A second face counts only when it passes by itself: cascades see faces in shirt buttons.
            With the backend `skip` the whole image is one face of score 1.
        """
        faces = self._extract(pixels_u8)
        if not faces:
            return FaceReading(0, None, 0.0, {}, 0.0), None
        height, width = pixels_u8.shape[:2]
        shares = [_area(face) / (height * width) for face in faces]
        scores = [1.0 if self._config.detector_backend == "skip" else float(face["confidence"]) for face in faces]
        passing = [
            i
            for i, (share, score) in enumerate(zip(shares, scores, strict=True))
            if share >= self._config.min_face_share and score >= self._config.min_face_score
        ]
        largest = max(passing or range(len(faces)), key=shares.__getitem__)
        x, y, w, h = (float(faces[largest]["facial_area"][key]) for key in "xywh")
        reading = FaceReading(max(len(passing), 1), (x, y, w, h), scores[largest], {}, shares[largest])
        return reading, _crop(faces[largest]["face"])

    def _extract(self, pixels_u8: NDArray[np.uint8]) -> list[dict[str, Any]]:
        detection, exceptions = _detection()
        try:
            faces = detection.extract_faces(
                img_path=np.ascontiguousarray(pixels_u8[:, :, ::-1]),  # DeepFace takes BGR
                detector_backend=self._config.detector_backend,
                enforce_detection=True,  # otherwise an image without a face comes back as one face of score 0
            )
        except (exceptions.FaceNotDetected, exceptions.ImgNotFound):
            return []
        return [face for face in faces if _area(face) > 0 and min(face["face"].shape) > 0]


def weights_place(file: str) -> Path:
    """Where DeepFace looks for a weight file: `$DEEPFACE_HOME`, or the home directory."""
    return Path(os.environ.get("DEEPFACE_HOME", Path.home())) / ".deepface" / "weights" / file


def _require_weights(file: str, url: str) -> None:
    place = weights_place(file)
    if not place.is_file():
        raise MissingWeightsError(
            f"DeepFace weights {file} are not at {place}; get them from {url} and put them there, or set "
            "$DEEPFACE_HOME to the folder that holds .deepface/weights. Nothing is downloaded for you"
        )


def _with_probabilities(reading: FaceReading, probabilities: dict[str, dict[str, float]]) -> FaceReading:
    return FaceReading(reading.n_faces, reading.box, reading.detector_score, probabilities, reading.face_share)


def _area(face: dict[str, Any]) -> float:
    return float(face["facial_area"]["w"]) * float(face["facial_area"]["h"])


def _crop(face_rgb: NDArray[Any]) -> NDArray[np.float32]:
    """As `DeepFace.analyze` prepares a face: BGR, scaled to fit, padded black."""
    from deepface.modules import preprocessing

    return np.asarray(preprocessing.resize_image(img=face_rgb[:, :, ::-1], target_size=_CROP)[0], dtype=np.float32)


def _read_heads(crops: list[NDArray[np.float32]]) -> list[dict[str, dict[str, float]]]:
    results: list[dict[str, dict[str, float]]] = []
    for start in range(0, len(crops), _HEAD_BATCH):
        batch = np.stack(crops[start : start + _HEAD_BATCH])
        genders, races = _predict("Gender", batch), _predict("Race", batch)
        results += [
            {"gender": _named(GENDERS, gender), "race": _named(RACES, race)}
            for gender, race in zip(genders, races, strict=True)
        ]
    return results


def _predict(head: str, batch: NDArray[np.float32]) -> NDArray[np.float64]:
    """`[N, 224, 224, 3]` -> `[N, K]`, each row summing to 1."""
    outputs = np.atleast_2d(_modeling().build_model(task="facial_attribute", model_name=head).predict(batch))
    values = outputs.astype(np.float64)
    shares: NDArray[np.float64] = values / values.sum(axis=1, keepdims=True)
    return shares


def _named(classes: tuple[str, ...], values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(classes, map(float, values), strict=True))


def _prepare() -> None:
    """DeepFace reads these on its first import: which framework to use, and whether to chat on stdout."""
    os.environ.setdefault("DEEPFACE_BACKEND_ENGINE", "pytorch")
    os.environ.setdefault("DEEPFACE_LOG_LEVEL", "30")


def _modeling() -> Any:
    _prepare()
    from deepface.modules import modeling

    return modeling


def _detection() -> tuple[Any, Any]:
    _prepare()
    from deepface.modules import detection, exceptions

    return detection, exceptions


def _deepface_version() -> str:
    import deepface

    return str(deepface.__version__)
