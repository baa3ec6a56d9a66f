"""Which images are kept, and for what reason each other one is dropped. Every image keeps its rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from popalign_core.attributes.classifier_interface import AttributeClassifier, FaceReading
from popalign_core.attributes.known_classes import check_classes
from popalign_core.config import AttributesConfig, Axis
from popalign_core.errors import InputError


def check_classifier(classifier: AttributeClassifier, axes: Sequence[Axis]) -> None:
    """Refuse a classifier that cannot tell a class an axis has.

    Raises:
        InputError: Naming the axis, the classes and what the classifier knows.
    """
    check_classes(f"{classifier.name}@{classifier.version}", classifier.axes, axes)


def filter_readings(
    readings: Sequence[FaceReading],
    image_ids: Sequence[str],
    axes: Sequence[Axis],
    config: AttributesConfig,
    classifier: str,
) -> pd.DataFrame:
    """Turn readings into the `attributes` table: one row an image and axis, none left out.

    An image without a usable face has the same `drop_reason` on all its rows but those of axes of the image, which
    need no face and have no box. A face whose class is in doubt (its probability is below `min_probability`, or the
    likeliest class is one the axis does not have) is `unsure` on that axis only.

    Args:
        readings: One an image.
        image_ids: In the same order.
        axes: The attributes.
        config: Thresholds; a value equal to its threshold passes.
        classifier: `name@version`, stored with each row.

    Returns:
        An `attributes` table, images in the order given.

    Raises:
        InputError: When the counts differ, or a reading lacks an axis or a class, or has a value that is not a
            probability.
    """
    if len(readings) != len(image_ids):
        raise InputError(f"{len(readings)} readings for {len(image_ids)} images; the classifier must answer for each")
    rows = [
        row
        for image_id, reading in zip(image_ids, readings, strict=True)
        for row in _rows(image_id, reading, axes, config, classifier)
    ]
    return _attribute_table(rows)


def unread(image_ids: Sequence[str], axes: Sequence[Axis], classifier: str, reason: str) -> pd.DataFrame:
    """Rows of `attributes` for images that were not read, and why."""
    blank = {"n_faces": 0, "box": None, "detector_score": 0.0, "class": None, "probability": None}
    rows = [
        {"image_id": image_id, "axis": axis.name, "classifier": classifier, "drop_reason": reason} | blank
        for image_id in image_ids
        for axis in axes
    ]
    return _attribute_table(rows)


def classes_by_image(attributes: pd.DataFrame) -> dict[str, dict[str, tuple[str | None, str | None]]]:
    """The table as image -> axis -> (class, drop reason).

    Raises:
        InputError: When an image and axis is there twice.
    """
    twice = attributes.duplicated(["image_id", "axis"])
    if twice.any():
        raise InputError(
            f"{int(twice.sum())} (image, axis) pairs are in the attributes twice, e.g. image "
            f"{attributes['image_id'][twice].iloc[0]}; read each image once"
        )
    seen: dict[str, dict[str, tuple[str | None, str | None]]] = {}
    columns = (attributes[name] for name in ("image_id", "axis", "class", "drop_reason"))
    for image_id, axis, name, reason in zip(*columns, strict=True):
        seen.setdefault(image_id, {})[axis] = (_or_none(name), _or_none(reason))
    return seen


def _drop_reason(reading: FaceReading, config: AttributesConfig) -> str | None:
    if reading.problem is not None:
        return reading.problem
    if reading.n_faces == 0:
        return "no_face"
    if reading.detector_score < config.min_face_score:
        return "low_face_score"
    if reading.face_share < config.min_face_share:
        return "small_face"
    return "several_faces" if reading.n_faces > 1 and config.several_faces == "drop" else None


def _rows(
    image_id: str, reading: FaceReading, axes: Sequence[Axis], config: AttributesConfig, classifier: str
) -> list[dict[str, Any]]:
    dropped = _drop_reason(reading, config)
    common = {
        "image_id": image_id,
        "n_faces": reading.n_faces,
        "box": None if reading.box is None else [float(value) for value in reading.box],
        "detector_score": reading.detector_score,
        "classifier": classifier,
    }
    rows = []
    for axis in axes:
        reason, where = dropped, {}
        if axis.of == "picture":
            reason, where = None if axis.name in reading.probabilities else reading.problem, {"box": None}
        name, probability = (None, None) if reason else _likeliest(image_id, reading, axis)
        if not reason and (name not in axis.classes or (probability or 0.0) < config.min_probability):
            reason = "unsure"
        rows.append(
            common
            | where
            | {
                "axis": axis.name,
                "class": None if reason else name,
                "probability": probability,
                "drop_reason": reason,
            }
        )
    return rows


def _likeliest(image_id: str, reading: FaceReading, axis: Axis) -> tuple[str, float]:
    """Class of largest probability among all the classifier knows; equal ones go to the first of the axis."""
    probabilities = reading.probabilities.get(axis.name, {})
    missing = [name for name in axis.classes if name not in probabilities]
    if missing:
        raise InputError(f"image {image_id}: the reading has no {axis.name!r} probability for {missing}")
    values = np.array(list(probabilities.values()))
    if not np.all((values >= 0) & (values <= 1)):  # NaN compares false
        raise InputError(f"image {image_id}: {axis.name!r} probabilities {probabilities} are not all within [0, 1]")
    ordered = [*axis.classes, *(name for name in probabilities if name not in axis.classes)]
    name = max(ordered, key=lambda key: probabilities[key])
    return name, probabilities[name]


def _attribute_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = {
        "image_id": object,
        "n_faces": np.int32,
        "box": object,
        "detector_score": np.float32,
        "axis": object,
        "class": object,
        "probability": np.float32,
        "classifier": object,
        "drop_reason": object,
    }
    return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in columns.items()})


def _or_none(value: object) -> str | None:
    """Pandas hands back a missing string as NaN or None, depending on the column's dtype."""
    return value if isinstance(value, str) else None
