"""Which classes the configured classifiers tell apart, known without loading one. Imports no torch."""

from collections.abc import Mapping, Sequence

from popalign_core.attributes.deepface_files import GENDERS, RACES
from popalign_core.config import AttributesConfig, Axis
from popalign_core.errors import InputError
from popalign_core.portraits import occupations

Classes = Mapping[str, tuple[str, ...]]
"""Axis to classes."""


def classes_read(name: str, config: AttributesConfig) -> Classes:
    """What a classifier reads, by its name in the configuration."""
    if name == "portraits":
        return {"gender": occupations.GENDERS, "race": occupations.RACES}
    if name == "deepface":
        ages = {"age": tuple(config.age_bands)} if config.age_bands else {}
        return {"gender": GENDERS, "race": RACES, **ages}
    return config.classifiers[name].classes


def shared_classes(known: Mapping[str, Classes]) -> dict[str, tuple[str, ...]]:
    """What several classifiers can agree on: of each axis the classes that all who read it know.

    Args:
        known: Classifier to what it reads.

    Raises:
        InputError: When those who read an axis have no class in common.
    """
    axes = dict.fromkeys(axis for classes in known.values() for axis in classes)
    found = {}
    for axis in axes:
        asked = {name: list(classes[axis]) for name, classes in known.items() if axis in classes}
        first, *others = asked.values()
        found[axis] = tuple(name for name in first if all(name in other for other in others))
        if not found[axis]:
            raise InputError(f"classifiers of the axis {axis!r} have no class in common: {asked}; map them alike")
    return found


def check_classes(classifier: str, known: Classes, axes: Sequence[Axis]) -> None:
    """Refuse a classifier that cannot tell a class that an axis has.

    Args:
        classifier: What a message calls it.
        known: What it reads.
        axes: What it is to read.

    Raises:
        InputError: Naming the axis, the classes and what the classifier knows.
    """
    for axis in axes:
        if axis.name not in known:
            raise InputError(
                f"classifier {classifier} does not read the axis {axis.name!r}, only {sorted(known)}; choose another "
                "classifier or leave the axis out"
            )
        missing = [name for name in axis.classes if name not in known[axis.name]]
        if missing:
            raise InputError(
                f"classifier {classifier} has no class {missing} for the axis {axis.name!r}, only "
                f"{list(known[axis.name])}; choose another classifier or other classes"
            )
