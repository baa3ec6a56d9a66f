"""Readers as the configuration describes them: found faces for classifiers, one process, votes."""

from pathlib import Path

import numpy as np
import pytest
from onnx_files import write_colour_network
from portrait_files import needs_portraits, portrait
from pydantic import ValidationError

from popalign_core.attributes.classifier_factory import build_classifier
from popalign_core.attributes.classifier_process import IsolatedClassifier
from popalign_core.config import AttributesConfig
from popalign_core.errors import InputError, MissingWeightsError
from tasks.common.measuring import classifier_identity, load_attribute_classifier

AXES = {"tone": {"dark": "dark", "light": "light"}}


def config(folder: Path, *, detector: str = "skip", margin: float = 0.0, **more: object) -> AttributesConfig:
    """An ONNX network that takes a picture for light where its mean is above a half."""
    path = write_colour_network(folder / "tone.onnx", np.repeat([[-20.0, 20.0]], 3, axis=0), [30.0, -30.0], (16, 16))
    described = {
        "kind": "onnx", "path": str(path), "axes": AXES, "labels": ["dark", "light"], "margin": margin,
        "mean": (0, 0, 0), "std": (1, 1, 1),
    }  # fmt: skip
    fields = {"classifier": "tone", "detector_backend": detector, "classifiers": {"tone": described}}
    return AttributesConfig.model_validate(fields | more)


def build(settings: AttributesConfig) -> object:
    return build_classifier(settings, "cpu", dict.fromkeys(settings.classifiers, "0123456789abcdef"))


@needs_portraits
def test_a_classifier_sees_the_face_that_the_detector_found_and_no_more(tmp_path: Path) -> None:
    """A grey-white wall around a face: whole the picture is light, the face alone is not."""
    pixels = np.full((512, 512, 3), 250, np.uint8)
    pixels[128:384, 128:384] = portrait("male/256/1.jpg")
    whole = build(config(tmp_path)).read([pixels])[0]
    face = build(config(tmp_path, detector="opencv")).read([pixels, np.zeros((64, 64, 3), np.uint8)])
    assert whole.probabilities["tone"]["light"] > 0.99
    assert face[0].probabilities["tone"]["light"] < 0.5
    assert face[0].n_faces == 1
    assert (face[1].n_faces, face[1].probabilities) == (0, {})
    wide = build(config(tmp_path, detector="opencv", margin=10.0)).read([pixels])[0]
    assert wide.probabilities["tone"] == pytest.approx(whole.probabilities["tone"], abs=0.01)


def test_names_and_versions_tell_content_and_detector(tmp_path: Path) -> None:
    classifier = build(config(tmp_path))
    assert (classifier.name, classifier.version, classifier.axes) == (
        "tone",
        "0123456789ab-skip",
        {"tone": ("dark", "light")},
    )


def test_a_described_classifier_is_known_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, there = config(tmp_path), config(tmp_path / "elsewhere")
    assert classifier_identity(here) == classifier_identity(there)
    assert "path" not in classifier_identity(here)
    path = Path(there.classifiers["tone"].path)
    path.write_bytes(path.read_bytes() + b"\x00")
    assert classifier_identity(here) != classifier_identity(there)
    path.unlink()
    with pytest.raises(MissingWeightsError, match=r"there is nothing at .*tone.onnx"):
        classifier_identity(there)


def test_the_shipped_names_are_in_keys_as_they_were() -> None:
    assert classifier_identity(AttributesConfig(classifier="deepface")).startswith("deepface-0.")
    both = classifier_identity(AttributesConfig(classifier=("portraits", "deepface")))
    assert both == [classifier_identity(AttributesConfig(classifier=name)) for name in ("portraits", "deepface")]


def test_a_described_classifier_works_in_a_process_of_its_own(tmp_path: Path) -> None:
    classifier = load_attribute_classifier(config(tmp_path), "cpu")
    assert isinstance(classifier, IsolatedClassifier)
    light, dark = (np.full((20, 20, 3), value, np.uint8) for value in (230, 30))
    assert [one.probabilities["tone"]["light"] > 0.9 for one in classifier.read([light, dark])] == [True, False]


def test_its_errors_arrive_from_there(tmp_path: Path) -> None:
    settings = config(tmp_path)
    Path(settings.classifiers["tone"].path).write_bytes(b"no network")
    with pytest.raises(InputError, match=r"tone.onnx cannot be read as ONNX"):
        load_attribute_classifier(settings, "cpu")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"classifier": "clip"},
            r"classifier \['clip'\] is not known; choose from \('portraits', 'deepface', 'tone'\)",
        ),
        ({"classifier": ("tone", "tone")}, "name each once"),
        ({"classifier": ()}, "name each once"),
        ({"classifiers": {"deepface": {"kind": "people", "path": "x", "axes": {"a": ["b"]}}}}, "choose another name"),
    ],
)
def test_names_must_be_known_and_distinct(tmp_path: Path, fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        config(tmp_path, **({"classifier": "deepface"} | fields if "classifiers" in fields else fields))
