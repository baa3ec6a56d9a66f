"""Several classifiers of the same images: a class counts where all who can read its axis agree, else they abstain."""

from collections.abc import Sequence, Set
from dataclasses import replace

from popalign_core.attributes.classifier_interface import AttributeClassifier, FaceReading, Images, abstain, likeliest
from popalign_core.attributes.known_classes import shared_classes

_AGREED, _DISAGREED = "agreed", "disagreed"
"""Pseudo-classes of probability 0 that say how a vote went; a disagreement is `UNSURE` as well."""


class VotingClassifier:
    """Asks all its classifiers. Faces are those of the first one that reads any; the others may use other faces.

    An axis that one classifier alone reads is taken from it; on any other axis only classes that all know can win.

    Attributes:
        name: Theirs, joined by "+".
        version: Theirs, joined by "+".
        axes: What can be read.
    """

    def __init__(self, classifiers: Sequence[AttributeClassifier], of_image: Set[str] = frozenset()) -> None:
        """Check that those who read the same axis can agree.

        Raises:
            InputError: When they have no class in common.
        """
        self._classifiers, self._of_image = classifiers, of_image
        self._finder = next((i for i, classifier in enumerate(classifiers) if set(classifier.axes) - of_image), 0)
        self.name = "+".join(classifier.name for classifier in classifiers)
        self.version = "+".join(classifier.version for classifier in classifiers)
        self.axes = shared_classes({classifier.name: classifier.axes for classifier in classifiers})

    def read(self, images: Images, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading an image, in order."""
        read = [classifier.read(images, image_ids) for classifier in self._classifiers]
        return [self._merge(readings) for readings in zip(*read, strict=True)]

    def _merge(self, readings: Sequence[FaceReading]) -> FaceReading:
        first, merged = readings[self._finder], {}
        for axis, classes in self.axes.items():
            asked = [
                (one.probabilities, classifier.axes[axis])
                for one, classifier in zip(readings, self._classifiers, strict=True)
                if axis in classifier.axes
            ]
            is_seen = any(axis in shares for shares, _ in asked) if axis in self._of_image else first.n_faces
            if is_seen:
                # a classifier without a face, or that failed, abstains; the others decide
                given = [shares.get(axis) or abstain(known) for shares, known in asked]
                merged[axis] = given[0] if len(given) == 1 else _vote(given, classes)
        return replace(first, probabilities=merged)


def agree_by_vote(reading: FaceReading) -> dict[str, bool]:
    """Axis -> whether the classifiers agreed, for the axes that were voted on."""
    return {
        axis: _AGREED in probabilities
        for axis, probabilities in reading.probabilities.items()
        if _AGREED in probabilities or _DISAGREED in probabilities
    }


def _vote(given: Sequence[dict[str, float]], classes: Sequence[str]) -> dict[str, float]:
    chosen = {likeliest(probabilities) for probabilities in given}
    if len(chosen) > 1:
        return abstain(classes) | {_DISAGREED: 0.0}
    if not chosen <= set(classes):  # all abstain
        return abstain(classes)
    means = {name: sum(one[name] for one in given) / len(given) for name in classes}
    return means | {_AGREED: 0.0}
