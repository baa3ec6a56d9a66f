"""DeepFace's weight files: what they are called, where they must lie, where to get them. Nothing is downloaded.

DeepFace itself would download what it lacks, create folders in the home directory on import, and pick a deep-learning
framework by chance. Here only its inner modules are imported, after `prepare`, and every file is looked for first.
"""

import os
from pathlib import Path
from typing import Any

from popalign_core.errors import MissingWeightsError
from popalign_core.sources import BY_COMMAND, WebFile

# In the order of the heads' outputs.
GENDERS = ("female", "male")
RACES = ("asian", "indian", "black", "white", "middle eastern", "latino hispanic")

_RELEASE = "https://github.com/serengil/deepface_models/releases/download/v1.0/"
_OPENCV = "https://github.com/opencv/"
HEAD_WEIGHTS = {
    "gender": ("gender_model_weights.pth", f"{_RELEASE}gender_model_weights.pth"),
    "race": ("race_model_single_batch.pth", f"{_RELEASE}race_model_single_batch.pth"),
    "age": ("age_model_weights.pth", f"{_RELEASE}age_model_weights.pth"),
}
"""Axis -> file and where to get it (about 512 MB each)."""
DETECTOR_WEIGHTS = {
    "yunet": (
        (
            "face_detection_yunet_2023mar.onnx",
            f"{_OPENCV}opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",
        ),
    ),
    "retinaface": (("retinaface.pth", f"{_RELEASE}retinaface.pth"),),
    "ssd": (
        ("deploy.prototxt", f"{_OPENCV}opencv/raw/3.4.0/samples/dnn/face_detector/deploy.prototxt"),
        (
            "res10_300x300_ssd_iter_140000.caffemodel",
            f"{_OPENCV}opencv_3rdparty/raw/dnn_samples_face_detector_20170830/res10_300x300_ssd_iter_140000.caffemodel",
        ),
    ),
    "centerface": (
        ("centerface.onnx", "https://github.com/Star-Clouds/CenterFace/raw/master/models/onnx/centerface.onnx"),
    ),
}
"""Detectors that need files; `opencv`, `fastmtcnn` and `skip` do not."""


def weights_place(file: str) -> Path:
    """Where DeepFace looks for a weight file: `$DEEPFACE_HOME`, or the home directory."""
    return Path(os.environ.get("DEEPFACE_HOME", Path.home())) / ".deepface" / "weights" / file


def require_weights(file: str, url: str) -> Path:
    """Where a file is; refuse to go on without it.

    Raises:
        MissingWeightsError: Naming the file, its place and its URL.
    """
    place = weights_place(file)
    if not place.is_file():
        raise MissingWeightsError(
            f"DeepFace weights {file} are not at {place}; {BY_COMMAND}, or get them from {url} and put them there, or "
            "set $DEEPFACE_HOME to the folder that holds .deepface/weights. Nothing is downloaded without asking"
        )
    return place


def deepface_source(file: str, url: str) -> WebFile:
    """Where a weight file comes from, and where it belongs."""
    return WebFile(url, weights_place(file), "classifiers")


def prepare() -> None:
    """DeepFace reads these on its first import: which framework to use, and whether to chat on stdout."""
    os.environ.setdefault("DEEPFACE_BACKEND_ENGINE", "pytorch")
    os.environ.setdefault("DEEPFACE_LOG_LEVEL", "30")


def modeling() -> Any:
    """DeepFace's module that builds models."""
    prepare()
    from deepface.modules import modeling

    return modeling
