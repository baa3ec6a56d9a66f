"""Prompts: subjects, lists, or a language model that writes them."""

import re
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, HttpUrl, ValidationError, field_validator, model_validator

from popalign_core.config.base import Frozen, Text, is_empty

THEMES = (
    "health", "science", "technology", "engineering", "education", "law", "finance", "office work", "service", "food",
    "farming", "trades", "manufacturing", "crafts", "arts", "music", "media", "sport", "transport", "safety",
)  # fmt: skip


class LLMConfig(Frozen):
    """An OpenAI-compatible endpoint. The key is read from the environment, never stored."""

    base_url: Text = "http://127.0.0.1:8000/v1"
    model: Text = "gpt-4o-mini"
    api_key_env: Text = "OPENAI_API_KEY"
    temperature: float = Field(default=1.0, ge=0, le=2)
    themes: tuple[Text, ...] = Field(default=THEMES, description="equally many prompts of each; one request is of one")
    n_parallel: int = Field(default=4, ge=1, description="calls under way at once")
    requests_per_minute: float | None = Field(default=None, gt=0, description="retries included; None sets no limit")
    max_retries: int = Field(default=4, ge=0, description="of one call: no answer, 408, 409, 429, 5xx")
    timeout_s: float = Field(default=60, gt=0)
    max_calls: int = Field(default=100, ge=1, description="answers paid for, those of earlier runs included")
    max_tokens_total: int | None = Field(
        default=None, ge=1, description="the same in tokens, as the server counts them"
    )

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        url = url.strip()
        try:
            (HttpUrl(url).host or "").encode("idna")
            problem = None if url.isprintable() else "it holds control characters"
        except ValueError as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        if problem:
            raise ValueError(f"{url!r} is no address ({problem}); write for example http://127.0.0.1:8000/v1")
        if "@" in urlsplit(url).netloc:  # it would stand in keys, pages and messages
            raise ValueError("the address holds a user or a password; put the key into the variable of api_key_env")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _check_variable(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # perhaps the key itself, which nothing may print
            raise ValueError("that is no name of a variable; put the key into one, such as OPENAI_API_KEY, and name it")
        return name


Kind = Literal["neutral", "specific", "generic"]


class BenchmarkConfig(Frozen):
    """Evaluation prompts with a name of their own, measured apart from all others."""

    list: Text = Field(description="name of a shipped set, or a file")
    kind: Kind = Field(
        default="neutral", description="specific: a prompt for each class of the axes; generic: used as they are"
    )
    carrier: Text | None = Field(default=None, description="None: of the prompts; a generic one then has none")
    axes: tuple[Text, ...] = Field(default=(), description="names of those measured; all but the only_measured if none")
    n_prompts: int | None = Field(default=None, ge=1, description="how many, evenly spaced in the list; None takes all")
    n_images: int | None = Field(default=None, ge=1, description="a prompt; None: as evaluation has for the kind")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.carrier is not None and "{}" not in self.carrier:
            raise ValueError(f"carrier {self.carrier!r} has no {{}}; write for example 'a photo of {{}}'")
        if self.kind == "generic" and self.axes:
            raise ValueError(f"axes {self.axes} of a generic benchmark: its images show no people; leave them out")
        return self


BENCHMARKS: dict[str, dict[str, Any]] = {
    "descriptor": {"list": "descriptors"},
    "couples": {"list": "couples", "axes": ("couple",)},
    "age": {"list": "ages", "axes": ("age",)},
}
"""Benchmarks that a configuration may name without a list; its other fields override these."""


class PromptsConfig(Frozen):
    """Where neutral and generic prompts come from."""

    source: Literal["grammar", "llm"] = "grammar"
    carrier: Text = Field(default="a photo of {}", description="one template for neutral and specific prompts alike")
    train_subjects: tuple[Text, ...] = Field(default=(), description="grammar: occupations the preference data covers")
    eval_subjects: tuple[Text, ...] = Field(default=(), description="occupations the evaluation uses; disjoint")
    generic_subjects: tuple[Text, ...] = Field(default=(), description="objects and other prompts without people")
    retained_subjects: tuple[Text, ...] = Field(
        default=(), description="the same for training.retention to hold; disjoint from generic_subjects"
    )
    # Left out of keys and documents when they are not used, so that the keys of before they came stay.
    train_lists: tuple[Text, ...] = Field(
        default=(), exclude_if=is_empty, description="more of train_subjects: names of shipped sets, or files"
    )
    eval_lists: tuple[Text, ...] = Field(default=(), exclude_if=is_empty, description="more of eval_subjects")
    generic_lists: tuple[Text, ...] = Field(
        default=(), exclude_if=is_empty, description="prompts like generic_subjects, but used as they are"
    )
    retained_lists: tuple[Text, ...] = Field(default=(), exclude_if=is_empty, description="like retained_subjects")
    one_person: bool = Field(
        default=True, exclude_if=bool, description="drop prompts of several people, as written or listed by others"
    )
    benchmarks: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$")], BenchmarkConfig] = Field(
        default={}, exclude_if=is_empty, description="by name; those in BENCHMARKS need no list"
    )
    n_train: int = Field(default=0, ge=0, description="llm: how many training prompts to write")
    llm: LLMConfig | None = None

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: BENCHMARKS.get(name, {}) | given if isinstance(given, dict) else given
            for name, given in value.items()
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{}" not in self.carrier:
            raise ValueError(f"carrier {self.carrier!r} has no {{}}; write for example 'a photo of {{}}'")
        if self.source == "llm" and (self.llm is None or self.n_train == 0):
            raise ValueError("source 'llm' needs an [prompts.llm] table and n_train > 0")
        taken = sorted(set(get_args(Kind)) & set(self.benchmarks))
        if taken:
            raise ValueError(
                f"benchmarks {taken} are those of eval_lists, eval_subjects, generic_lists and generic_subjects, with "
                "evaluation.n_* images; fill these, or choose another name"
            )
        return self
