"""`PipelineConfig`: everything that decides the results of one run, and how it is read."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from popalign_core.config.attributes import AttributesConfig
from popalign_core.config.axes import AXES
from popalign_core.config.base import Axis, Frozen, Text, describe_problems
from popalign_core.config.evaluation import SECOND, EvaluationConfig
from popalign_core.config.prompts import PromptsConfig
from popalign_core.config.sampling import ModelConfig, SamplingConfig
from popalign_core.config.training import TrainingConfig
from popalign_core.errors import ConfigError

_EVALUATION_COUNTS = {"n_neutral": 2, "n_specific": 1, "n_generic": 1}
"""Images a prompt by kind -> at least."""

SystemName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_=,-]*$")]
"""No @ and no colon: they stand in the names of nodes."""


class PreferencesConfig(Frozen):
    """Set preferences."""

    n_neutral: int = Field(default=20, ge=1, description="images per neutral prompt")
    n_specific: int = Field(default=4, ge=1, description="images per identity-specific prompt")
    n_retained: int = Field(default=4, ge=1, description="images per prompt of prompts.retained_subjects")
    set_size: int = Field(default=18, ge=1, description="images per set")
    n_sets: int = Field(default=1, ge=1, description="set pairs per prompt")
    seed: int = Field(default=0, ge=0, description="seed of the random choice of sets")
    strategy: Literal["balanced", "paper", "pairwise", "mcmc", "human"] = Field(
        default="balanced",
        description="how sets are built: 'balanced' as close to the target as the images allow; 'paper' at random, "
        "the better set preferred; 'pairwise' pairs of single images; 'mcmc' the paper's Markov chain with the "
        "classifier as judge; 'human' sets curated by people",
    )
    target_of: Literal["joint", "marginal"] = Field(
        default="joint",
        description="what the target constrains: the joint shares of all axes, or the shares of each axis alone",
    )
    mcmc_steps: int = Field(
        default=500,
        ge=1,
        description="maximum steps of a chain; it ends earlier when the set cannot come closer to the target",
    )
    curated: Text | None = Field(
        default=None, description="strategy 'human': key of the finished sets, as printed by `popalign study publish`"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.strategy == "human") != (self.curated is not None):
            raise ValueError(
                f"strategy {self.strategy!r} with curated {self.curated!r}; 'human', and it alone, needs the key of "
                "finished sets, which `popalign study publish` prints"
            )
        return self


class SystemConfig(Frozen):
    """Another way to get the evaluation images, to compare with: what it changes of the pipeline's configuration."""

    sampling: dict[str, Any] = Field(default={}, description="overrides of [sampling]")
    model: dict[str, Any] = Field(default={}, description="overrides of [model]")
    preferences: dict[str, Any] = Field(default={}, description="overrides of [preferences] for the training data")
    training: dict[str, Any] | None = Field(
        default=None, description="overrides of [training]; the system samples from the model trained with them"
    )
    start: SystemName | None = Field(
        default=None, description="system whose model the training starts from; default: the base model"
    )
    aligned: bool = Field(default=False, description="sample from the model that the pipeline itself trains")
    images: Text | None = Field(
        default=None, description="key of external images, as printed by `popalign import images`"
    )

    @property
    def trains(self) -> bool:
        """Whether it samples from a model that is trained for it."""
        return self.aligned or self.training is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        changed = self.model_fields_set - {"images"}
        if self.images is not None and any(getattr(self, name) not in ({}, None, False) for name in changed):
            raise ValueError(f"images {self.images!r} are sampled already: leave {', '.join(sorted(changed))} out")
        own = [name for name in ("model", "preferences", "training", "start") if getattr(self, name)]
        if self.aligned and own:
            raise ValueError(
                f"aligned is the model that the pipeline trains: leave {', '.join(own)} out, or leave aligned "
                "out and say with training what another model is trained with"
            )
        if self.training is None and (self.start or self.preferences):
            raise ValueError("start and preferences are for a model that is trained: add training, {} for as it is")
        return self


class PipelineConfig(Frozen):
    """Everything that decides the results of one run."""

    model: ModelConfig = Field(default=ModelConfig(), description="the base model")
    axes: tuple[Axis, ...] = Field(
        min_length=1, description="attributes whose distribution matters: tables, or names of shipped axes"
    )
    prompts: PromptsConfig = Field(description="training and evaluation prompts")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="how images are sampled")
    attributes: AttributesConfig = Field(default=AttributesConfig(), description="how images are classified")
    preferences: PreferencesConfig = Field(default=PreferencesConfig(), description="how preference sets are built")
    training: TrainingConfig = Field(default=TrainingConfig(), description="objective, weights and optimizer")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="evaluation images and statistics")
    systems: dict[SystemName, SystemConfig] = Field(default={}, description="systems for `popalign compare`, by name")

    @field_validator("axes", mode="before")
    @classmethod
    def _look_up(cls, value: Any) -> Any:
        if not isinstance(value, list) or not any(isinstance(given, str) for given in value):
            return value
        unknown = [given for given in value if isinstance(given, str) and given not in AXES]
        if unknown:
            raise ValueError(
                f"there are no axes {unknown}; choose from {', '.join(AXES)}, or describe them in [[axes]]"
            )
        return [AXES[given] if isinstance(given, str) else given for given in value]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [axis.name for axis in self.axes]
        if len(set(names)) != len(names):
            raise ValueError(f"two axes share a name: {names}")
        for name, benchmark in self.prompts.benchmarks.items():
            unknown = [axis for axis in benchmark.axes if axis not in names]
            if unknown:
                raise ValueError(
                    f"prompts.benchmarks.{name} measures {unknown}, but there are the axes {names}; add them to "
                    "`axes`, with only_measured = true where prompts and sets are not to vary over them"
                )
        for name in self.evaluation.other_readings:
            try:
                self.reading(name)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self

    def reading(self, name: str) -> AttributesConfig:
        """How a further reading of `evaluation.other_readings` reads images.

        Raises:
            ConfigError: When what it changes of `[attributes]` does not fit.
        """
        changes = self.evaluation.other_readings[name]
        where = "evaluation.second_classifier" if name == SECOND else f"evaluation.readings.{name}"
        try:
            return AttributesConfig.model_validate(
                merge_documents(self.attributes.model_dump(exclude_none=True), changes)
            )
        except ValidationError as error:
            problems = describe_problems(error, AttributesConfig, f"{where}.", where)
            raise ConfigError("\n".join([f"{where} does not fit:", *problems])) from error

    @property
    def identity_axes(self) -> tuple[Axis, ...]:
        """The axes that prompts vary over and sets balance."""
        return tuple(axis for axis in self.axes if not axis.only_measured)

    def measured_axes(self, benchmark: str) -> tuple[Axis, ...]:
        """The axes that are measured on a benchmark."""
        named = self.prompts.benchmarks[benchmark].axes if benchmark in self.prompts.benchmarks else ()
        return tuple(axis for axis in self.axes if axis.name in named) or self.identity_axes

    @property
    def benchmark_axes(self) -> dict[str, tuple[str, ...]]:
        """Benchmark -> names of the axes measured on it, for those with other axes than all."""
        names = ("neutral", "specific", *self.prompts.benchmarks)
        measured = {name: self.measured_axes(name) for name in names}
        return {name: tuple(axis.name for axis in axes) for name, axes in measured.items() if axes != self.axes}

    def scaled(self, factor: float) -> "PipelineConfig":
        """The same evaluation with `factor` times the images a prompt, and the prompts of benchmarks that limit theirs;
        at least one of each, and two of a neutral prompt. Training stays as it is.
        """

        def scale(value: int | None, least: int = 1) -> int | None:
            return None if value is None else max(least, round(factor * value))

        counts = {name: scale(getattr(self.evaluation, name), least) for name, least in _EVALUATION_COUNTS.items()}
        benchmarks = {
            name: each.model_copy(update={"n_prompts": scale(each.n_prompts), "n_images": scale(each.n_images)})
            for name, each in self.prompts.benchmarks.items()
        }
        return self.model_copy(
            update={
                "evaluation": self.evaluation.model_copy(update=counts),
                "prompts": self.prompts.model_copy(update={"benchmarks": benchmarks}),
            }
        )


def parse_config(document: dict[str, Any], origin: str = "configuration") -> PipelineConfig:
    """Validate a document.

    Raises:
        ConfigError: With one line for every problem, naming the field and the value.
    """
    if found := _nul_in(document):
        raise ConfigError(f"{origin}: {found} holds a NUL character, which no path and no prompt has; take it out")
    try:
        return PipelineConfig.model_validate(document)
    except ValidationError as error:
        problems = describe_problems(error, PipelineConfig)
        raise ConfigError(f"{origin} is invalid, {len(problems)} problem(s):\n" + "\n".join(problems)) from error


def _nul_in(document: dict[str, Any]) -> str | None:
    """The first field that holds a NUL."""
    left: list[tuple[str, Any]] = [("", document)]
    while left:
        where, value = left.pop()
        if "\0" in where or (isinstance(value, str) and "\0" in value):
            return repr(where)
        inner = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
        )
        left += [(f"{where}.{name}" if where else str(name), each) for name, each in inner]
    return None


def merge_documents(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """One document laid over another; tables are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge_documents(result[key], value) if nested else value
    return result
