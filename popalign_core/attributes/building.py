"""From the configuration to the reader that it describes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from popalign_core.attributes.detector import FaceDetector, cut_out
from popalign_core.attributes.reader import AttributeReader, FaceClassifier, FaceReading, Pictures
from popalign_core.config import AttributesConfig, NetworkConfig, PeopleConfig, ZeroShotConfig

_VERSION_DIGITS = 12


class FoundFaceReader:
    """A detector that finds faces and a classifier that is shown them; with the detector `skip`, whole pictures.

    Attributes:
        name: The classifier's.
        version: The classifier's and the detector's.
        axes: The classifier's.
    """

    def __init__(self, config: AttributesConfig, classifier: FaceClassifier, margin: float) -> None:
        """Load the detector.

        Args:
            config: Whose detector, with which thresholds.
            classifier: Sees only faces.
            margin: Shares of a face's box that it sees around the face.
        """
        self._detector, self._classifier, self._margin = FaceDetector(config), classifier, margin
        self.name, self.axes = classifier.name, classifier.axes
        self.version = f"{classifier.version}-{config.detector_backend}"

    def read(self, pictures: Pictures, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading a picture, in order."""
        readings = [self._detector.detect(pixels)[0] for pixels in pictures]
        faces = [
            cut_out(pixels, reading.box, self._margin)
            for pixels, reading in zip(pictures, readings, strict=True)
            if reading.box is not None
        ]
        classified = iter(self._classifier.classify(faces))
        return [one if one.box is None else replace(one, probabilities=next(classified)) for one in readings]


def build_reader(config: AttributesConfig, device: str, contents: Mapping[str, str]) -> AttributeReader:
    """The reader that `config.classifier` names; of several, one that lets them vote.

    Args:
        config: Of the attributes.
        device: Where networks go.
        contents: sha256 of the files of the described classifiers, by name; goes into their versions.

    Raises:
        MissingWeightsError: When a file is absent.
        ConfigError: When a package is.
        InputError: When a file is not what it should be.
    """
    from popalign_core.attributes.voting import VotingReader

    readers = [_build(name, config, device, contents) for name in config.names]
    return readers[0] if len(readers) == 1 else VotingReader(readers)


def _build(name: str, config: AttributesConfig, device: str, contents: Mapping[str, str]) -> AttributeReader:
    if name == "portraits":
        from popalign_core.attributes.embedded import PortraitsReader

        return PortraitsReader(device)
    if name == "deepface":
        from popalign_core.attributes.deepface import DeepFaceReader

        return DeepFaceReader(config, device)
    settings, version = config.classifiers[name], contents[name][:_VERSION_DIGITS]
    if isinstance(settings, PeopleConfig):
        from popalign_core.attributes.people import PeopleReader, read_labels

        return PeopleReader(name, version, settings.axes, read_labels(Path(settings.path)))
    return FoundFaceReader(config, _load_classifier(name, version, settings, device), settings.margin)


def _load_classifier(name: str, version: str, settings: ZeroShotConfig | NetworkConfig, device: str) -> FaceClassifier:
    if isinstance(settings, ZeroShotConfig):
        from popalign_core.attributes.zero_shot import ZeroShotClassifier, load_space

        return ZeroShotClassifier(name, version, settings, load_space(settings, device))
    from popalign_core.attributes.networks import LabelClassifier, load_onnx, load_transformers

    load = load_onnx if settings.kind == "onnx" else load_transformers
    return LabelClassifier(name, version, settings, load(settings, device))
