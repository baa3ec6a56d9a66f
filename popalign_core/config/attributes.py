"""Which classifiers read the faces, and when an image is dropped."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from popalign_core.config.base import Frozen, Text


class ZeroShotConfig(Frozen):
    """A CLIP that is asked in words which class an image shows."""

    kind: Literal["clip", "open-clip"] = Field(description="format of the CLIP")
    path: Text = Field(description="clip: a transformers folder; open-clip: a checkpoint file")
    architecture: str | None = Field(
        default=None, description="open-clip: architecture of the checkpoint, such as ViT-B-32"
    )
    axes: dict[str, dict[str, Text]] = Field(min_length=1, description="axis -> class -> words for the templates")
    templates: tuple[Text, ...] = Field(
        default=("a photo of {}",), min_length=1, description="prompts; {} is replaced by the class's words"
    )
    margin: float = Field(default=0.25, ge=0, description="margin around the face, as a share of the box on each side")

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Axis to the classes that it tells apart."""
        return {axis: tuple(words) for axis, words in self.axes.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        bad = [template for template in self.templates if "{}" not in template]
        if bad:
            raise ValueError(f"templates {bad} have no {{}}; write for example 'a photo of {{}}'")
        if (self.kind == "open-clip") != (self.architecture is not None):
            raise ValueError(f"kind {self.kind!r} with architecture {self.architecture!r}; open-clip alone needs one")
        return self


class NetworkConfig(Frozen):
    """An image classifier with labels: a transformers folder, or an ONNX file."""

    kind: Literal["image-classifier", "onnx"] = Field(description="a transformers folder, or an ONNX file")
    path: Text = Field(description="the folder or file")
    axes: dict[str, dict[str, Text]] = Field(
        min_length=1, description="axis -> label -> class; every label of the network exactly once"
    )
    labels: tuple[Text, ...] = Field(default=(), description="onnx: labels of the outputs, in order")
    softmax: bool = Field(default=True, description="onnx: apply softmax, for outputs that are logits")
    mean: tuple[float, float, float] = Field(
        default=(0.485, 0.456, 0.406), description="onnx: mean of RGB in [0, 1], for normalisation"
    )
    std: tuple[float, float, float] = Field(
        default=(0.229, 0.224, 0.225), description="onnx: standard deviation of RGB in [0, 1], for normalisation"
    )
    margin: float = Field(default=0.25, ge=0, description="margin around the face, as a share of the box on each side")

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Axis to the classes that it tells apart; several labels may mean one."""
        return {axis: tuple(dict.fromkeys(labels.values())) for axis, labels in self.axes.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "onnx") != bool(self.labels):
            raise ValueError(f"kind {self.kind!r} with {len(self.labels)} labels; onnx alone needs them")
        return self


class PeopleConfig(Frozen):
    """People's labels of stored images: a CSV or Parquet file with `image_id`, `axis` and `class`."""

    kind: Literal["people"] = Field(description="labels by people")
    path: Text = Field(description="CSV or Parquet file with image_id, axis and class")
    axes: dict[str, tuple[Text, ...]] = Field(min_length=1, description="axis -> classes that people chose from")

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Axis to the classes that it tells apart."""
        return dict(self.axes)


class AttributesConfig(Frozen):
    """Which classifiers read the faces, and when an image is dropped."""

    classifier: Text | tuple[Text, ...] = Field(
        default="portraits", description="'portraits', 'deepface' or a name in `classifiers`; several of them vote"
    )
    detector_backend: Literal["opencv", "fastmtcnn", "retinaface", "yunet", "ssd", "centerface", "skip"] = Field(
        default="opencv", description="deepface: face detector"
    )
    min_face_score: float = Field(default=0.5, ge=0, le=1, description="smallest detector score of a face")
    min_face_share: float = Field(
        default=0.02, ge=0, le=1, description="smallest face box, as a share of the image area"
    )
    min_probability: float = Field(
        default=0.0, ge=0, le=1, description="smallest class probability; below it the image is dropped as 'unsure'"
    )
    several_faces: Literal["drop", "largest"] = Field(
        default="drop", description="images with several faces: drop them, or read the largest face"
    )
    age_bands: dict[str, Annotated[int, Field(ge=0, le=100)]] = Field(
        default={}, description="deepface, axis `age`: class -> lowest age of the class; the first starts at 0"
    )
    classifiers: dict[str, Annotated[ZeroShotConfig | NetworkConfig | PeopleConfig, Field(discriminator="kind")]] = (
        Field(default={}, description="further classifiers by name")
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The classifiers that read, in order."""
        return (self.classifier,) if isinstance(self.classifier, str) else self.classifier

    @model_validator(mode="after")
    def _check(self) -> Self:
        known, ages = ("portraits", "deepface", *self.classifiers), list(self.age_bands.values())
        unknown = [name for name in self.names if name not in known]
        for problem, text in (
            (unknown, f"classifier {unknown} is not known; choose from {known}, or describe it in `classifiers`"),
            (len(known) > len(set(known)), f"classifiers {known} name one twice; choose another name"),
            (len(set(self.names)) < max(1, len(self.names)), f"classifier {self.names}: name each once"),
            (ages and ages != [0, *sorted(set(ages) - {0})], f"age_bands {ages} must rise from 0"),
        ):
            if problem:
                raise ValueError(text)
        return self
