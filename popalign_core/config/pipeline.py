"""`PipelineConfig`: everything that decides the results of one run, and how it is read."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from popalign_core.config.attributes import AttributesConfig
from popalign_core.config.base import Axis, Frozen, Text
from popalign_core.config.evaluation import EvaluationConfig
from popalign_core.config.prompts import PromptsConfig
from popalign_core.config.sampling import ModelConfig, SamplingConfig
from popalign_core.config.training import TrainingConfig
from popalign_core.errors import ConfigError

SystemName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$")]


class PreferencesConfig(Frozen):
    """Set preferences."""

    n_neutral: int = Field(default=20, ge=1, description="images a neutral prompt")
    n_specific: int = Field(default=4, ge=1, description="images an identity-specific prompt")
    n_retained: int = Field(default=4, ge=1, description="images a prompt of prompts.retained_subjects")
    set_size: int = Field(default=18, ge=1, description="images a set")
    n_sets: int = Field(default=1, ge=1, description="set pairs a prompt")
    seed: int = Field(default=0, ge=0)
    strategy: Literal["balanced", "paper", "pairwise", "mcmc"] = Field(
        default="balanced",
        description="preferred sets: as near the target as the images allow, drawn at random as in the paper, as "
        "balanced but in pairs of one image each, or by the paper's Markov chain with the classifier as judge",
    )
    target_of: Literal["joint", "marginal"] = Field(
        default="joint", description="what comes near: the share of each product of classes, or each axis's alone"
    )
    mcmc_steps: int = Field(default=500, ge=1, description="of a chain at most; it ends when the set cannot be nearer")


class SystemConfig(Frozen):
    """Another way to get the evaluation images, to compare with: what it changes of `model` and `sampling`."""

    sampling: dict[str, Any] = Field(default={}, description="laid over the pipeline's sampling")
    model: dict[str, Any] = Field(default={}, description="laid over the pipeline's model")
    aligned: bool = Field(default=False, description="draw from the model that the pipeline trains")
    images: Text | None = Field(default=None, description="key of images made elsewhere, of `popalign import images`")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.images is not None and (self.sampling or self.model or self.aligned):
            raise ValueError(f"images {self.images!r} are drawn already: leave sampling, model and aligned out")
        if self.aligned and self.model:
            raise ValueError("aligned draws from the trained model: leave model out")
        return self


class PipelineConfig(Frozen):
    """Everything that decides the results of one run."""

    model: ModelConfig = ModelConfig()
    axes: tuple[Axis, ...] = Field(min_length=1)
    prompts: PromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    attributes: AttributesConfig = AttributesConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    systems: dict[SystemName, SystemConfig] = Field(default={}, description="for `popalign compare`, by name")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [axis.name for axis in self.axes]
        if len(set(names)) != len(names):
            raise ValueError(f"two axes share a name: {names}")
        return self


def load_config(path: Path) -> PipelineConfig:
    """Read a TOML file; a `preset = "NAME"` line at the top starts from that preset.

    Raises:
        ConfigError: When the file is missing, is not TOML, or does not fit.
    """
    from popalign_core.presets import preset

    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}; give an existing TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}; see README.md for an example") from error
    base = document.pop("preset", None)
    if base is not None:
        document = merge_documents(preset(base).model_dump(exclude_none=True), document)
    return parse_config(document, origin=str(path))


def parse_config(document: dict[str, Any], origin: str = "configuration") -> PipelineConfig:
    """Validate a document.

    Raises:
        ConfigError: With one line for every problem, naming the field and the value.
    """
    try:
        return PipelineConfig.model_validate(document)
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, item['loc'])) or '(top)'}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{origin} does not fit, {len(problems)} problem(s):\n" + "\n".join(problems)) from error


def merge_documents(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """One document laid over another; tables are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge_documents(result[key], value) if nested else value
    return result
