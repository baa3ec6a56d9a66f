"""Attributes: what a face reader sees in an image, and which images are dropped and why."""

__all__ = [
    "classifier_factory",
    "deepface",
    "deepface_files",
    "detector",
    "embedded",
    "filtering",
    "heads",
    "isolated",
    "networks",
    "people_labels",
    "reader",
    "voting",
    "zero_shot",
]
