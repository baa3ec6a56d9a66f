"""DeepFace: real detection on real portraits; no face is not a face (pitfall 4); nothing is ever downloaded."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from portrait_files import needs_portraits, portrait

from popalign_core.attributes.classifier_interface import FaceReading
from popalign_core.attributes.deepface import DeepFaceClassifier
from popalign_core.attributes.deepface_files import DETECTOR_WEIGHTS, HEAD_WEIGHTS, modeling, weights_place
from popalign_core.attributes.deepface_heads import age_shares
from popalign_core.attributes.detector import FaceDetector, crop_face
from popalign_core.config import AttributesConfig
from popalign_core.errors import ConfigError, MissingWeightsError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without weights; anything DeepFace would write or download lands here."""
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    return tmp_path


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
    assert found == 196
    assert single == 193


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
            weights_place(other).parent.mkdir(parents=True, exist_ok=True)
            weights_place(other).touch()
    with pytest.raises(MissingWeightsError) as caught:
        DeepFaceClassifier(AttributesConfig())
    assert str(caught.value).startswith(
        f"DeepFace weights {file} are not at {home / '.deepface' / 'weights' / file}; run `popalign fetch`"
    )
    assert f"run `popalign fetch` with the --preset, --config and --set of this run, or get them from {url} and" in str(
        caught.value
    )
    assert not weights_place(file).exists()


@pytest.mark.parametrize("backend", ["yunet", "retinaface", "ssd", "centerface"])
def test_missing_detector_weights_are_named(home, backend):
    for file, url in DETECTOR_WEIGHTS[backend]:
        with pytest.raises(MissingWeightsError) as caught:
            FaceDetector(AttributesConfig(detector_backend=backend))
        assert str(caught.value).startswith(
            f"DeepFace weights {file} are not at {weights_place(file)}; run `popalign fetch`"
        )
        assert f" {url} and" in str(caught.value)
        weights_place(file).parent.mkdir(parents=True, exist_ok=True)
        weights_place(file).touch()  # the next file is asked for then


def test_detectors_ask_for_the_files_that_their_packages_read():
    """Retinaface on PyTorch reads another file than on TensorFlow; asking for that one led to a download."""
    os.environ.setdefault("DEEPFACE_BACKEND_ENGINE", "pytorch")
    from deepface.models.face_detection import CenterFace, Ssd, YuNet
    from retinaface.model import retinaface_pth_model

    asked = {backend: [url for _, url in files] for backend, files in DETECTOR_WEIGHTS.items()}
    assert asked == {
        "yunet": [YuNet.WEIGHTS_URL],
        "retinaface": [retinaface_pth_model.WEIGHTS_URLS[0]],
        "ssd": [Ssd.MODEL_URL, Ssd.WEIGHTS_URL],
        "centerface": [CenterFace.WEIGHTS_URL],
    }
    assert all(url.endswith(f"/{file}") for files in DETECTOR_WEIGHTS.values() for file, url in files)


def test_the_retinaface_file_is_the_one_that_is_read(home):
    """Random weights in its own format: it runs, is sure of no face in grey, and fetches nothing else."""
    import torch
    from retinaface import RetinaFace
    from retinaface.model.retinaface_pth_model import RetinaFace as Network

    ((file, _),) = DETECTOR_WEIGHTS["retinaface"]
    weights_place(file).parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(Network().state_dict(), weights_place(file))
    try:
        reading, crop = FaceDetector(AttributesConfig(detector_backend="retinaface")).detect(GREY[:64, :64])
        assert (reading.n_faces, reading.problem, crop) == (0, None, None)
        assert [path.name for path in weights_place(file).parent.iterdir()] == [file]
    finally:  # both packages keep what they loaded
        modeling().cached_models["face_detector"].pop("retinaface", None)
        vars(RetinaFace).pop("model", None)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    with pytest.raises(ConfigError, match=r"detector_backend = 'fastmtcnn' needs a package .*\n?.*facenet"):
        FaceDetector(AttributesConfig(detector_backend="fastmtcnn"))


def test_the_urls_and_files_are_those_of_the_installed_package():
    from deepface.models.demography import DemographyUtils
    from deepface.models.demography.pytorch import Age, Gender, Race

    from popalign_core.attributes.deepface_files import GENDERS, RACES

    assert HEAD_WEIGHTS["age"][1] in Age.WEIGHTS_URL
    assert HEAD_WEIGHTS["gender"][1] in Gender.WEIGHTS_URL
    assert HEAD_WEIGHTS["race"][1] in Race.WEIGHTS_URL
    assert [url.rsplit("/", 1)[1] for _, url in HEAD_WEIGHTS.values()] == [file for file, _ in HEAD_WEIGHTS.values()]
    assert tuple(DemographyUtils.RACE_LABELS) == RACES
    assert [{"Woman": "female", "Man": "male"}[label] for label in DemographyUtils.GENDER_LABELS] == list(GENDERS)


def test_importing_the_module_touches_neither_deepface_nor_the_home(tmp_path):
    code = (
        "import sys, popalign_core.attributes.deepface;"
        "print([name for name in ('deepface', 'cv2') if name in sys.modules])"
    )
    environment = dict(os.environ) | {"HOME": str(tmp_path), "DEEPFACE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_portraits
@pytest.mark.parametrize("shared", [True, False])
def test_the_heads_run_from_weight_files_and_agree_with_deepface_itself(home, shared):
    """Random weights in DeepFace's own format (three files of 512 MB): what `DeepFace.analyze` reads, in one batch."""
    from deepface.modules import demography
    from head_files import write_heads

    write_heads(shared_trunk=shared)
    # a band a year, so that nothing of the distribution is lost
    classifier = DeepFaceClassifier(AttributesConfig(age_bands={str(age): age for age in range(101)}))
    assert len(set(classifier._heads._trunk_of.values())) == (1 if shared else 3)
    pictures = [portrait("female/256/0.jpg"), GREY, portrait("male/256/1.jpg")[:250]]
    try:
        readings = classifier.read(pictures)
        assert [reading.n_faces for reading in readings] == [1, 0, 1]
        assert readings[1].probabilities == {}
        males = [readings[i].probabilities["gender"]["male"] for i in (0, 2)]
        assert abs(males[0] - males[1]) > 0.01  # the two faces are told apart
        for i in (0, 2):
            bgr = np.ascontiguousarray(pictures[i][:, :, ::-1])
            (expected,) = demography.analyze(bgr, actions=["gender", "race", "age"], silent=True)
            ours = readings[i].probabilities
            assert ours["gender"]["male"] == pytest.approx(expected["gender"]["Man"] / 100, abs=1e-5)
            assert ours["race"] == pytest.approx({k: v / 100 for k, v in expected["race"].items()}, abs=1e-5)
            assert int(sum(int(age) * p for age, p in ours["age"].items())) == expected["age"]
            assert sum(ours["gender"].values()) == pytest.approx(1)
    finally:
        # Gigabytes, in memory and on disk, that nobody after this test should carry.
        modeling().cached_models["facial_attribute"].clear()
        for file, _ in HEAD_WEIGHTS.values():
            weights_place(file).unlink()


def test_a_file_that_holds_no_network_is_named(home):
    for file, _ in HEAD_WEIGHTS.values():
        weights_place(file).parent.mkdir(parents=True, exist_ok=True)
        weights_place(file).write_bytes(b"<html>404</html>")
    with pytest.raises(MissingWeightsError, match=r"gender_model_weights.pth cannot be read .*; get them again from"):
        DeepFaceClassifier(AttributesConfig())


def test_ages_are_added_up_to_bands():
    ages = np.zeros((2, 101))
    ages[0, [0, 19, 20, 59, 60, 100]] = [0.1, 0.1, 0.2, 0.2, 0.3, 0.1]
    ages[1, 59] = 1.0
    bands = {"young": 0, "middle-aged": 20, "old": 60}
    assert age_shares(ages, bands) == pytest.approx(np.array([[0.2, 0.4, 0.4], [0.0, 1.0, 0.0]]))


@pytest.mark.parametrize(
    "bands", [{"young": 1, "old": 60}, {"young": 0, "old": 60, "middle-aged": 40}, {"young": 0, "old": 0}]
)
def test_bands_of_age_rise_from_0(bands):
    with pytest.raises(ValueError, match="must rise from 0"):
        AttributesConfig(age_bands=bands)


@needs_portraits
def test_a_huge_picture_is_looked_at_scaled_down_and_measured_in_its_own_px():
    large = np.asarray(Image.fromarray(portrait("female/256/0.jpg")).resize((4096, 4096), Image.Resampling.BICUBIC))
    small, _ = FaceDetector(AttributesConfig()).detect(np.asarray(Image.fromarray(large).resize((2048, 2048))))
    reading, crop = FaceDetector(AttributesConfig()).detect(large)
    assert reading.n_faces == 1
    assert crop.shape == (224, 224, 3)
    assert reading.box == pytest.approx([2 * value for value in small.box], abs=40)
    assert reading.face_share == pytest.approx(small.face_share, abs=0.02)
    assert reading.face_share == pytest.approx(reading.box[2] * reading.box[3] / 4096**2)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4000, 3), (15, 300, 3), (16, 16, 3), (3000, 17, 3)])
@pytest.mark.parametrize("backend", ["opencv", "skip"])
def test_a_sliver_is_no_face_or_one_and_no_crash(shape, backend):
    reading, crop = FaceDetector(AttributesConfig(detector_backend=backend)).detect(np.full(shape, 90, np.uint8))
    assert reading.n_faces == (1 if backend == "skip" and min(shape[:2]) >= 16 else 0)
    assert (crop is None) == (reading.n_faces == 0)
    assert reading.problem is None


def test_what_the_detector_chokes_on_is_counted_and_not_raised(monkeypatch):
    import cv2

    def choke(*args, **kwargs):
        raise cv2.error("resize: inv_scale_x > 0")

    detector = FaceDetector(AttributesConfig())
    monkeypatch.setattr(detector, "_extract", choke)
    assert detector.detect(GREY) == (FaceReading(0, None, 0.0, {}, 0.0, "detector_failed"), None)


def test_a_face_is_cut_out_with_its_margin_as_far_as_the_picture_goes():
    pixels = np.arange(100 * 80 * 3, dtype=np.int64).reshape(100, 80, 3).astype(np.uint8)
    assert np.array_equal(crop_face(pixels, (20.0, 30.0, 40.0, 20.0), 0.5), pixels[20:60, 0:80])
    assert np.array_equal(crop_face(pixels, (60.0, 90.0, 40.0, 20.0), 0.25), pixels[85:100, 50:80])
    assert crop_face(pixels, (5.0, 5.0, 0.0, 0.0), 0.25).shape == (1, 1, 3)
