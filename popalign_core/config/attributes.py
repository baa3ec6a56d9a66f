"""Which classifiers read the faces, and when an image is dropped."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from popalign_core.config.base import Frozen, Text


class ZeroShotConfig(Frozen):
    """A CLIP that is asked in words which class an image shows."""

    kind: Literal["clip", "open-clip"]
    path: Text = Field(description="clip: a transformers folder; open-clip: a checkpoint file")
    architecture: str | None = Field(default=None, description="open-clip: the checkpoint's, such as ViT-B-32")
    axes: dict[str, dict[str, Text]] = Field(min_length=1, description="axis -> class -> words for the templates")
    templates: tuple[Text, ...] = Field(default=("a photo of {}",), min_length=1)
    margin: float = Field(default=0.25, ge=0, description="around the face, shares of the box on each side")

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

    kind: Literal["image-classifier", "onnx"]
    path: Text
    axes: dict[str, dict[str, Text]] = Field(
        min_length=1, description="axis -> label -> class; every label of the network once, those of an axis together"
    )
    labels: tuple[Text, ...] = Field(default=(), description="onnx: of its outputs, in order")
    softmax: bool = Field(default=True, description="onnx: whether its outputs are logits")
    mean: tuple[float, float, float] = Field(default=(0.485, 0.456, 0.406), description="onnx: of RGB in [0, 1]")
    std: tuple[float, float, float] = Field(default=(0.229, 0.224, 0.225), description="onnx: of RGB in [0, 1]")
    margin: float = Field(default=0.25, ge=0, description="around the face, shares of the box on each side")

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

    kind: Literal["people"]
    path: Text
    axes: dict[str, tuple[Text, ...]] = Field(min_length=1, description="axis -> the classes people chose from")

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Axis to the classes that it tells apart."""
        return dict(self.axes)


class AttributesConfig(Frozen):
    """Which classifiers read the faces, and when an image is dropped."""

    classifier: Text | tuple[Text, ...] = Field(
        default="portraits", description="'portraits', 'deepface' or a name in `classifiers`; several vote"
    )
    detector_backend: Literal["opencv", "fastmtcnn", "retinaface", "yunet", "ssd", "centerface", "skip"] = "opencv"
    min_face_score: float = Field(default=0.5, ge=0, le=1)
    min_face_share: float = Field(default=0.02, ge=0, le=1, description="smallest face box, share of the image area")
    min_probability: float = Field(default=0.0, ge=0, le=1, description="smallest class probability; below: 'unsure'")
    several_faces: Literal["drop", "largest"] = Field(default="drop", description="what an image with more is worth")
    age_bands: dict[str, Annotated[int, Field(ge=0, le=100)]] = Field(
        default={}, description="deepface reads the axis `age`: class -> its youngest age, the first from 0"
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
