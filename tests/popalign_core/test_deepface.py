"""DeepFace: real detection on real portraits; no face is not a face (pitfall 4); nothing is ever downloaded."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from popalign_core.attributes.deepface import HEAD_WEIGHTS, DeepFaceReader, FaceDetector, weights_place
from popalign_core.config import AttributesConfig
from popalign_core.errors import ConfigError, MissingWeightsError

PORTRAITS = Path(__file__).parents[2].parent / "shared" / "data" / "portraits_256.zip"
needs_portraits = pytest.mark.skipif(not PORTRAITS.exists(), reason=f"needs the CC0 portraits at {PORTRAITS}")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without weights; anything DeepFace would write or download lands here."""
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    return tmp_path


def portrait(name):
    with zipfile.ZipFile(PORTRAITS) as archive:
        return np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))


def portraits(n):
    return [(f"{sex}/256/{i}.jpg", portrait(f"{sex}/256/{i}.jpg")) for i in range(n) for sex in ("female", "male")]


GREY = np.full((256, 256, 3), 128, dtype=np.uint8)


@needs_portraits
def test_a_dozen_portraits_have_a_face_where_faces_are(home):
    detector = FaceDetector(AttributesConfig())
    readings = {name: detector.detect(pixels)[0] for name, pixels in portraits(6)}
    missed = [name for name, reading in readings.items() if reading.n_faces == 0]
    assert missed == []
    for reading in readings.values():
        x, y, w, h = reading.box
        assert x < 128 < x + w
        assert y < 160
        assert 0.05 < reading.face_share < 0.8
        assert reading.face_share == pytest.approx(w * h / 256**2)
        assert 0.5 < reading.detector_score <= 1
    assert list(home.iterdir()) == []


@pytest.mark.slow
@needs_portraits
def test_all_portraits_have_a_face():
    detector = FaceDetector(AttributesConfig())
    readings = [detector.detect(pixels)[0] for _, pixels in portraits(100)]
    assert len(readings) == 200
    found = sum(reading.n_faces > 0 for reading in readings)
    single = sum(reading.n_faces == 1 for reading in readings)
    assert found >= 190
    assert single >= 180


@needs_portraits
def test_the_crop_is_the_face_as_the_heads_take_it():
    reading, crop = FaceDetector(AttributesConfig()).detect(portrait("female/256/0.jpg"))
    assert reading.n_faces == 1
    assert (crop.shape, crop.dtype) == ((224, 224, 3), np.float32)
    assert 0 <= crop.min() < crop.max() <= 1


@needs_portraits
def test_the_crop_is_bgr():
    """Skin is redder than blue; the heads were trained on OpenCV's order."""
    _, crop = FaceDetector(AttributesConfig()).detect(portrait("female/256/0.jpg"))
    blue, _, red = crop.mean(axis=(0, 1))
    assert red > blue


def test_no_face_is_said_and_not_made_up():
    reading, crop = FaceDetector(AttributesConfig()).detect(GREY)
    assert (reading.n_faces, reading.box, reading.detector_score, reading.face_share) == (0, None, 0.0, 0.0)
    assert reading.probabilities == {}
    assert crop is None


@needs_portraits
def test_the_largest_of_two_faces_is_read_and_both_are_counted():
    """Pitfall 4: the first face is not the largest."""
    large, small = portrait("female/256/0.jpg"), portrait("male/256/0.jpg")
    small = np.asarray(Image.fromarray(small).resize((128, 128), Image.Resampling.LANCZOS))
    for left_is_small in (True, False):
        canvas = np.zeros((256, 400, 3), dtype=np.uint8)
        canvas[:, 140:396] = large if left_is_small else canvas[:, 140:396]
        if left_is_small:
            canvas[64:192, 4:132] = small
        else:
            canvas[:, 4:260] = large
            canvas[64:192, 266:394] = small
        reading, _ = FaceDetector(AttributesConfig()).detect(canvas)
        x, _, w, _ = reading.box
        centre = x + w / 2
        assert reading.n_faces == 2
        assert (centre > 140) is left_is_small


@needs_portraits
def test_a_second_face_below_the_thresholds_does_not_count():
    canvas = np.zeros((256, 400, 3), dtype=np.uint8)
    canvas[:, 140:396] = portrait("female/256/0.jpg")
    small = Image.fromarray(portrait("male/256/0.jpg")).resize((128, 128), Image.Resampling.LANCZOS)
    canvas[64:192, 4:132] = np.asarray(small)
    reading, _ = FaceDetector(AttributesConfig(min_face_share=0.1)).detect(canvas)
    assert reading.n_faces == 1


def test_skip_takes_the_whole_picture_for_one_face():
    reading, crop = FaceDetector(AttributesConfig(detector_backend="skip")).detect(GREY)
    assert (reading.n_faces, reading.detector_score) == (1, 1.0)
    assert reading.face_share == pytest.approx(1.0, abs=0.01)
    assert crop.shape == (224, 224, 3)


@pytest.mark.parametrize("missing", ["gender", "race"])
def test_missing_head_weights_are_named_with_place_and_url(home, missing):
    file, url = HEAD_WEIGHTS[missing]
    for other, _ in HEAD_WEIGHTS.values():
        if other != file:
            weights_place(other).parent.mkdir(parents=True)
            weights_place(other).touch()
    with pytest.raises(MissingWeightsError) as caught:
        DeepFaceReader(AttributesConfig())
    assert str(caught.value).startswith(
        f"DeepFace weights {file} are not at {home / '.deepface' / 'weights' / file}; get"
    )
    assert f"get them from {url} and" in str(caught.value)
    assert not weights_place(file).exists()


@pytest.mark.parametrize(
    ("backend", "file"), [("yunet", "face_detection_yunet_2023mar.onnx"), ("retinaface", "retinaface.h5")]
)
def test_missing_detector_weights_are_named(home, backend, file):
    with pytest.raises(
        MissingWeightsError, match=rf"DeepFace weights {file} are not at .*; get them from https://github"
    ):
        FaceDetector(AttributesConfig(detector_backend=backend))
    assert list(home.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    with pytest.raises(ConfigError, match=r"detector_backend = 'fastmtcnn' needs a package .*facenet"):
        FaceDetector(AttributesConfig(detector_backend="fastmtcnn"))


def test_the_urls_and_files_are_those_of_the_installed_package():
    from deepface.models.demography import DemographyUtils
    from deepface.models.demography.pytorch import Gender, Race

    from popalign_core.attributes.deepface import GENDERS, RACES

    assert HEAD_WEIGHTS["gender"][1] in Gender.WEIGHTS_URL
    assert HEAD_WEIGHTS["race"][1] in Race.WEIGHTS_URL
    assert [url.rsplit("/", 1)[1] for _, url in HEAD_WEIGHTS.values()] == [file for file, _ in HEAD_WEIGHTS.values()]
    assert tuple(DemographyUtils.RACE_LABELS) == RACES
    assert [{"Woman": "female", "Man": "male"}[label] for label in DemographyUtils.GENDER_LABELS] == list(GENDERS)


def test_importing_the_module_touches_neither_deepface_nor_the_home(tmp_path):
    code = (
        "import sys, popalign_core.attributes.deepface;"
        "print([name for name in ('deepface', 'cv2', 'torch') if name in sys.modules])"
    )
    environment = dict(os.environ) | {"HOME": str(tmp_path), "DEEPFACE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_portraits
def test_the_heads_run_from_weight_files_and_agree_with_deepface_itself(home):
    """Random weights in DeepFace's own format (two files of 512 MB): what `DeepFace.analyze` reads, in one batch."""
    import torch
    from deepface.models.demography.pytorch import Gender, Race
    from deepface.modules import demography, modeling

    torch.manual_seed(0)
    for module, (file, _) in zip((Gender, Race), HEAD_WEIGHTS.values(), strict=True):
        weights_place(file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.base_model().state_dict(), weights_place(file))
    reader = DeepFaceReader(AttributesConfig())
    pictures = np.stack([portrait("female/256/0.jpg"), GREY, portrait("male/256/1.jpg")])
    try:
        readings = reader.read(pictures)
        assert [reading.n_faces for reading in readings] == [1, 0, 1]
        assert readings[1].probabilities == {}
        for i in (0, 2):
            bgr = np.ascontiguousarray(pictures[i][:, :, ::-1])
            (expected,) = demography.analyze(bgr, actions=["gender", "race"], silent=True)
            ours = readings[i].probabilities
            assert ours["gender"]["male"] == pytest.approx(expected["gender"]["Man"] / 100, abs=1e-5)
            assert ours["race"] == pytest.approx({k: v / 100 for k, v in expected["race"].items()}, abs=1e-5)
            assert sum(ours["gender"].values()) == pytest.approx(1)
    finally:
        # Two gigabytes, in memory and on disk, that nobody after this test should carry.
        modeling.cached_models["facial_attribute"].clear()
        for file, _ in HEAD_WEIGHTS.values():
            weights_place(file).unlink()
