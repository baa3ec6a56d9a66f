"""How the evaluation images are sampled and scored, and how certain the statistics are."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from popalign_core.config.base import Frozen, Text, is_empty


class ClipScoreConfig(Frozen):
    """100 x cosine of image and prompt, by a CLIP in transformers' format."""

    kind: Literal["clip"] = Field(description="CLIP score")
    path: Text | None = Field(default=None, description="a transformers folder; default: the embedded CLIP")


class OpenClipConfig(Frozen):
    """CLIP score by an open_clip checkpoint; needs the extra `clip`."""

    kind: Literal["open-clip"] = Field(description="CLIP score by open_clip")
    path: Text = Field(description="the checkpoint file")
    architecture: Text = Field(description="architecture of the checkpoint, such as ViT-B-32")


class HPSConfig(Frozen):
    """Human Preference Score v2 (Wu et al. 2023): 100 x cosine of a fine-tuned ViT-H-14."""

    kind: Literal["hps"] = Field(description="Human Preference Score v2")
    path: Text = Field(description="the checkpoint, such as HPS_v2.1_compressed.pt")
    tokenizer: Text = Field(description="a folder with the CLIP tokenizer, such as any CLIP ViT in transformers format")


class PickScoreConfig(Frozen):
    """PickScore (Kirstain et al. 2023): cosine times the model's own scale."""

    kind: Literal["pick-score"] = Field(description="PickScore")
    path: Text = Field(description="a transformers folder")
    processor: Text | None = Field(default=None, description="folder with tokenizer and preprocessing; default: path")


class AestheticsConfig(Frozen):
    """LAION's aesthetic predictor: a small network on the embedding of a CLIP ViT-L/14."""

    kind: Literal["aesthetics"] = Field(description="LAION aesthetic score")
    path: Text = Field(description="the checkpoint, such as sac+logos+ava1-l14-linearMSE.pth")
    clip: Text = Field(description="transformers folder of the CLIP ViT-L/14")


class ImageRewardConfig(Frozen):
    """ImageReward (Xu et al. 2023): a BLIP model over prompt and image."""

    kind: Literal["image-reward"] = Field(description="ImageReward")
    path: Text = Field(description="the checkpoint, ImageReward.pt")
    tokenizer: Text = Field(description="a folder with the tokenizer of bert-base-uncased")


class InceptionConfig(Frozen):
    """Features for FID and KID: the 2015 Inception network as TorchScript."""

    kind: Literal["inception"] = Field(description="features for FID and KID")
    path: Text = Field(description="inception-2015-12-05.pt")


ScorerConfig = Annotated[
    ClipScoreConfig
    | OpenClipConfig
    | HPSConfig
    | PickScoreConfig
    | AestheticsConfig
    | ImageRewardConfig
    | InceptionConfig,
    Field(discriminator="kind"),
]
ScorerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
ReadingName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
CONFIGURED, SECOND = "configured", "second"
"""The readings that `[attributes]` describes and by `second_classifier`."""
SUBJECT_ACCURACY = "subject_accuracy"
"""1 where an image is nearest to its own prompt among all without people, else 0."""
CLIP_SCORE = "clip_score"
"""What the CLIP that ships gives, where no scorer is configured."""
DIVERSITY = "diversity"
"""Mean cosine distance of an image from the others of its prompt."""
CMMD, FID, KID = "cmmd", "fid", "kid"
TAKEN = (SUBJECT_ACCURACY, DIVERSITY, CMMD, FID, KID, "no_face_share", "unsure_share", "other_class_share")
"""Metrics that come by themselves, the first three with the first CLIP of `scorers`."""


class EvaluationConfig(Frozen):
    """Benchmarks on prompts the preference data never saw."""

    n_neutral: int = Field(default=40, ge=2, description="images per neutral evaluation prompt")
    n_specific: int = Field(default=3, ge=1, description="images per identity-specific evaluation prompt")
    n_generic: int = Field(default=3, ge=1, description="images per generic prompt")
    n_bootstrap: int = Field(default=2000, ge=100, description="resamples behind the interval of a distance")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="coverage of the intervals")
    seed: int = Field(default=0, ge=0, description="seed of the evaluation images, intervals and tests")
    second_classifier: Text | None = Field(
        default=None,
        exclude_if=lambda name: name is None,
        description="`popalign compare`: a second classifier for the same images, to report agreement",
    )
    readings: dict[ReadingName, dict[str, Any]] = Field(
        default={},
        exclude_if=is_empty,
        description="`popalign compare`: further readings of the images, by name; each overrides [attributes]",
    )
    scorers: dict[ScorerName, ScorerConfig] = Field(
        default={}, exclude_if=is_empty, description="scorers by metric name; default: the embedded CLIP only"
    )

    @property
    def other_readings(self) -> dict[str, dict[str, Any]]:
        """Readings beside the one that `[attributes]` describes, by name, with what each changes of it."""
        second = {} if self.second_classifier is None else {SECOND: {"classifier": self.second_classifier}}
        return second | self.readings

    @model_validator(mode="after")
    def _check(self) -> Self:
        own = sorted({CONFIGURED, SECOND} & set(self.readings))
        if own:
            raise ValueError(f"readings {own} have the names of those by [attributes] and second_classifier")
        taken = sorted(set(TAKEN) & set(self.scorers))
        if taken:
            raise ValueError(f"scorers {taken} have the names of metrics that come by themselves; choose others")
        networks = [name for name, scorer in self.scorers.items() if scorer.kind == "inception"]
        if len(networks) > 1:
            raise ValueError(f"scorers {networks} are all Inception networks; FID and KID take one")
        return self
