"""Attributes: what a face classifier sees in an image, and which images are dropped and why."""

__all__ = [
    "classifier_factory",
    "classifier_interface",
    "classifier_process",
    "deepface",
    "deepface_files",
    "deepface_heads",
    "detector",
    "filtering",
    "image_classifiers",
    "known_classes",
    "people_labels",
    "portraits_classifier",
    "voting",
    "zero_shot",
]
