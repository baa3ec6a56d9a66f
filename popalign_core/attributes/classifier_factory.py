"""From the configuration to the classifier that it describes."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from popalign_core.attributes.classifier_interface import AttributeClassifier, FaceClassifier, FaceReading, Images
from popalign_core.attributes.detector import FaceDetector, crop_face
from popalign_core.config import AttributesConfig, NetworkConfig, PeopleConfig, ZeroShotConfig

_VERSION_DIGITS = 12
_NO_FACE = FaceReading(0, None, 0.0, {}, 0.0)


class FoundFaceClassifier:
    """A detector that finds faces and a classifier that is shown them; with the detector `skip`, whole images.

    Axes of the image are read off all of it, whatever faces are in it.

    Attributes:
        name: The classifier's.
        version: The classifier's and, where there is one, the detector's.
        axes: The classifier's.
    """

    def __init__(
        self, config: AttributesConfig, classifier: FaceClassifier, margin: float, of_image: Set[str] = frozenset()
    ) -> None:
        """Load the detector, unless no axis is read off a face.

        Args:
            config: Whose detector, with which thresholds.
            classifier: Sees faces, and the whole image for some axes.
            margin: Shares of a face's box that it sees around the face.
            of_image: Names of the axes that are read off the whole image.
        """
        self._classifier, self._margin, self._of_image = classifier, margin, of_image & set(classifier.axes)
        self._detector = FaceDetector(config) if set(classifier.axes) - of_image else None
        self.name, self.axes = classifier.name, classifier.axes
        self.version = f"{classifier.version}-{config.detector_backend}" if self._detector else classifier.version

    def read(self, images: Images, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading an image, in order."""
        readings = self._read_faces(images) if self._detector else [_NO_FACE] * len(images)
        if not self._of_image:
            return readings
        whole = self._classifier.classify(list(images))
        seen = [{axis: shares[axis] for axis in self._of_image} for shares in whole]
        return [replace(one, probabilities=one.probabilities | more) for one, more in zip(readings, seen, strict=True)]

    def _read_faces(self, images: Images) -> list[FaceReading]:
        assert self._detector is not None
        readings = [self._detector.detect(pixels)[0] for pixels in images]
        faces = [
            crop_face(pixels, reading.box, self._margin)
            for pixels, reading in zip(images, readings, strict=True)
            if reading.box is not None
        ]
        classified = iter(self._classifier.classify(faces))
        return [one if one.box is None else replace(one, probabilities=next(classified)) for one in readings]


def build_classifier(
    config: AttributesConfig, device: str, contents: Mapping[str, str], of_image: Set[str] = frozenset()
) -> AttributeClassifier:
    """The classifier that `config.classifier` names; of several, one that lets them vote.

    Args:
        config: Of the attributes.
        device: Where networks go.
        contents: sha256 of the files of the described classifiers, by name; goes into their versions.
        of_image: Names of the axes that are read off the whole image.

    Raises:
        MissingWeightsError: When a file is absent.
        ConfigError: When a package is.
        InputError: When a file is not what it should be.
    """
    from popalign_core.attributes.voting import VotingClassifier

    classifiers = [_build(name, config, device, contents, of_image) for name in config.names]
    return classifiers[0] if len(classifiers) == 1 else VotingClassifier(classifiers, of_image)


def _build(
    name: str, config: AttributesConfig, device: str, contents: Mapping[str, str], of_image: Set[str]
) -> AttributeClassifier:
    if name == "portraits":
        from popalign_core.attributes.portraits_classifier import PortraitsFaceClassifier

        return PortraitsFaceClassifier(device)
    if name == "deepface":
        from popalign_core.attributes.deepface import DeepFaceClassifier

        return DeepFaceClassifier(config, device)
    settings, version = config.classifiers[name], contents[name][:_VERSION_DIGITS]
    if isinstance(settings, PeopleConfig):
        from popalign_core.attributes.people_labels import PeopleClassifier, read_labels

        return PeopleClassifier(name, version, settings.axes, read_labels(Path(settings.path)))
    return FoundFaceClassifier(config, _load_classifier(name, version, settings, device), settings.margin, of_image)


def _load_classifier(name: str, version: str, settings: ZeroShotConfig | NetworkConfig, device: str) -> FaceClassifier:
    if isinstance(settings, ZeroShotConfig):
        from popalign_core.attributes.zero_shot import ZeroShotClassifier, load_space

        return ZeroShotClassifier(name, version, settings, load_space(settings, device))
    from popalign_core.attributes.image_classifiers import LabelClassifier, load_onnx, load_transformers

    load = load_onnx if settings.kind == "onnx" else load_transformers
    return LabelClassifier(name, version, settings, load(settings, device))
