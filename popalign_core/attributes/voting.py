"""Several readers of the same images: a class counts where all who can read its axis agree, else they abstain."""

from collections.abc import Sequence, Set
from dataclasses import replace

from popalign_core.attributes.classifier_interface import AttributeReader, FaceReading, Pictures, abstain, likeliest
from popalign_core.errors import InputError

_AGREED, _DISAGREED = "agreed", "disagreed"
"""Pseudo-classes of probability 0 that say how a vote went; a disagreement is `UNSURE` besides."""


class VotingReader:
    """Asks all its readers. Faces are those of the first one that reads any; the others may look where they like.

    An axis that only one of them reads is that one's; of the others, only the classes that all know can win.

    Attributes:
        name: Theirs, joined by "+".
        version: Theirs, joined by "+".
        axes: What can be read.
    """

    def __init__(self, readers: Sequence[AttributeReader], of_picture: Set[str] = frozenset()) -> None:
        """Check that those who read the same axis can agree.

        Raises:
            InputError: When they have no class in common.
        """
        self._readers, self._of_picture = readers, of_picture
        self._finder = next((i for i, reader in enumerate(readers) if set(reader.axes) - of_picture), 0)
        self.name = "+".join(reader.name for reader in readers)
        self.version = "+".join(reader.version for reader in readers)
        names = dict.fromkeys(axis for reader in readers for axis in reader.axes)
        self.axes = {axis: self._common_classes(axis) for axis in names}
        for axis, classes in self.axes.items():
            if not classes:
                known = {reader.name: list(reader.axes[axis]) for reader in readers if axis in reader.axes}
                raise InputError(f"classifiers of the axis {axis!r} have no class in common: {known}; map them alike")

    def read(self, pictures: Pictures, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading a picture, in order."""
        read = [reader.read(pictures, image_ids) for reader in self._readers]
        return [self._merge(readings) for readings in zip(*read, strict=True)]

    def _common_classes(self, axis: str) -> tuple[str, ...]:
        known = [reader.axes[axis] for reader in self._readers if axis in reader.axes]
        return tuple(name for name in known[0] if all(name in classes for classes in known))

    def _merge(self, readings: Sequence[FaceReading]) -> FaceReading:
        first, merged = readings[self._finder], {}
        for axis, classes in self.axes.items():
            asked = [
                (one.probabilities, reader.axes[axis])
                for one, reader in zip(readings, self._readers, strict=True)
                if axis in reader.axes
            ]
            is_seen = any(axis in said for said, _ in asked) if axis in self._of_picture else first.n_faces
            if is_seen:
                # who saw no face, or could not look, abstains; the image stays the others'
                given = [said.get(axis) or abstain(known) for said, known in asked]
                merged[axis] = given[0] if len(given) == 1 else _vote(given, classes)
        return replace(first, probabilities=merged)


def agree_by_vote(reading: FaceReading) -> dict[str, bool]:
    """Axis -> whether the readers agreed, for the axes that were voted on."""
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
