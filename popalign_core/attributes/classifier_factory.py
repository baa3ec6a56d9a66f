"""From the configuration to the reader that it describes."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from popalign_core.attributes.classifier_interface import AttributeReader, FaceClassifier, FaceReading, Pictures
from popalign_core.attributes.detector import FaceDetector, crop_face
from popalign_core.config import AttributesConfig, NetworkConfig, PeopleConfig, ZeroShotConfig

_VERSION_DIGITS = 12
_NO_FACE = FaceReading(0, None, 0.0, {}, 0.0)


class FoundFaceReader:
    """A detector that finds faces and a classifier that is shown them; with the detector `skip`, whole pictures.

    Axes of the picture are read off all of it, whatever faces are in it.

    Attributes:
        name: The classifier's.
        version: The classifier's and, where there is one, the detector's.
        axes: The classifier's.
    """

    def __init__(
        self, config: AttributesConfig, classifier: FaceClassifier, margin: float, of_picture: Set[str] = frozenset()
    ) -> None:
        """Load the detector, unless no axis is read off a face.

        Args:
            config: Whose detector, with which thresholds.
            classifier: Sees faces, and the whole picture for some axes.
            margin: Shares of a face's box that it sees around the face.
            of_picture: Names of the axes that are read off the whole picture.
        """
        self._classifier, self._margin, self._of_picture = classifier, margin, of_picture & set(classifier.axes)
        self._detector = FaceDetector(config) if set(classifier.axes) - of_picture else None
        self.name, self.axes = classifier.name, classifier.axes
        self.version = f"{classifier.version}-{config.detector_backend}" if self._detector else classifier.version

    def read(self, pictures: Pictures, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading a picture, in order."""
        readings = self._read_faces(pictures) if self._detector else [_NO_FACE] * len(pictures)
        if not self._of_picture:
            return readings
        whole = self._classifier.classify(list(pictures))
        seen = [{axis: shares[axis] for axis in self._of_picture} for shares in whole]
        return [replace(one, probabilities=one.probabilities | more) for one, more in zip(readings, seen, strict=True)]

    def _read_faces(self, pictures: Pictures) -> list[FaceReading]:
        assert self._detector is not None
        readings = [self._detector.detect(pixels)[0] for pixels in pictures]
        faces = [
            crop_face(pixels, reading.box, self._margin)
            for pixels, reading in zip(pictures, readings, strict=True)
            if reading.box is not None
        ]
        classified = iter(self._classifier.classify(faces))
        return [one if one.box is None else replace(one, probabilities=next(classified)) for one in readings]


def build_reader(
    config: AttributesConfig, device: str, contents: Mapping[str, str], of_picture: Set[str] = frozenset()
) -> AttributeReader:
    """The reader that `config.classifier` names; of several, one that lets them vote.

    Args:
        config: Of the attributes.
        device: Where networks go.
        contents: sha256 of the files of the described classifiers, by name; goes into their versions.
        of_picture: Names of the axes that are read off the whole picture.

    Raises:
        MissingWeightsError: When a file is absent.
        ConfigError: When a package is.
        InputError: When a file is not what it should be.
    """
    from popalign_core.attributes.voting import VotingReader

    readers = [_build(name, config, device, contents, of_picture) for name in config.names]
    return readers[0] if len(readers) == 1 else VotingReader(readers, of_picture)


def _build(
    name: str, config: AttributesConfig, device: str, contents: Mapping[str, str], of_picture: Set[str]
) -> AttributeReader:
    if name == "portraits":
        from popalign_core.attributes.portraits_classifier import PortraitsReader

        return PortraitsReader(device)
    if name == "deepface":
        from popalign_core.attributes.deepface import DeepFaceReader

        return DeepFaceReader(config, device)
    settings, version = config.classifiers[name], contents[name][:_VERSION_DIGITS]
    if isinstance(settings, PeopleConfig):
        from popalign_core.attributes.people_labels import PeopleReader, read_labels

        return PeopleReader(name, version, settings.axes, read_labels(Path(settings.path)))
    return FoundFaceReader(config, _load_classifier(name, version, settings, device), settings.margin, of_picture)


def _load_classifier(name: str, version: str, settings: ZeroShotConfig | NetworkConfig, device: str) -> FaceClassifier:
    if isinstance(settings, ZeroShotConfig):
        from popalign_core.attributes.zero_shot import ZeroShotClassifier, load_space

        return ZeroShotClassifier(name, version, settings, load_space(settings, device))
    from popalign_core.attributes.image_classifiers import LabelClassifier, load_onnx, load_transformers

    load = load_onnx if settings.kind == "onnx" else load_transformers
    return LabelClassifier(name, version, settings, load(settings, device))
