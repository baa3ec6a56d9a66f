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

    base_url: Text = Field(default="http://127.0.0.1:8000/v1", description="URL of the OpenAI-compatible API")
    model: Text = Field(default="gpt-4o-mini", description="model name, as the server knows it")
    api_key_env: Text = Field(default="OPENAI_API_KEY", description="environment variable with the API key")
    temperature: float = Field(default=1.0, ge=0, le=2, description="sampling temperature")
    themes: tuple[Text, ...] = Field(
        default=THEMES, description="prompts are spread evenly over the themes; one theme per request"
    )
    n_parallel: int = Field(default=4, ge=1, description="concurrent calls")
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="rate limit, retries included; default: none"
    )
    max_retries: int = Field(
        default=4, ge=0, description="retries per call, on timeouts and status 408, 409, 429 and 5xx"
    )
    timeout_s: float = Field(default=60, gt=0, description="seconds until a call must be complete")
    max_calls: int = Field(
        default=100, ge=1, description="budget: maximum number of paid answers, including earlier runs"
    )
    max_tokens_total: int | None = Field(
        default=None, ge=1, description="budget: maximum number of tokens, as counted by the server"
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
            raise ValueError(f"{url!r} is not an address ({problem}); write for example http://127.0.0.1:8000/v1")
        if "@" in urlsplit(url).netloc:  # it would stand in keys, pages and messages
            raise ValueError("the address holds a user or a password; put the key into the variable of api_key_env")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _check_variable(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # perhaps the key itself, which nothing may print
            raise ValueError(
                "that is not the name of a variable; put the key into one, such as OPENAI_API_KEY, and name it"
            )
        return name


Kind = Literal["neutral", "specific", "generic"]


class BenchmarkConfig(Frozen):
    """Evaluation prompts with a name of their own, measured apart from all others."""

    list: Text = Field(description="name of a shipped list, or a file")
    kind: Kind = Field(
        default="neutral", description="neutral; specific: one prompt per class of the axes; generic: used unchanged"
    )
    carrier: Text | None = Field(
        default=None, description="prompt template; default: that of [prompts], and none for generic benchmarks"
    )
    axes: tuple[Text, ...] = Field(default=(), description="axes to measure; default: all without only_measured")
    n_prompts: int | None = Field(
        default=None, ge=1, description="number of prompts, evenly spaced in the list; default: all"
    )
    n_images: int | None = Field(
        default=None, ge=1, description="images per prompt; default: as in [evaluation] for this kind"
    )

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

    source: Literal["grammar", "llm"] = Field(
        default="grammar", description="'grammar': subjects and lists; 'llm': a language model writes training prompts"
    )
    carrier: Text = Field(default="a photo of {}", description="template of neutral and specific prompts")
    train_subjects: tuple[Text, ...] = Field(default=(), description="occupations used for the preference data")
    eval_subjects: tuple[Text, ...] = Field(
        default=(), description="occupations used for evaluation; disjoint from train_subjects"
    )
    generic_subjects: tuple[Text, ...] = Field(
        default=(), description="objects and other prompts without people, for evaluation"
    )
    retained_subjects: tuple[Text, ...] = Field(
        default=(),
        description="prompts without people that training.retention keeps unchanged; disjoint from generic_subjects",
    )
    # Left out of keys and documents when they are not used, so that the keys of before they came stay.
    train_lists: tuple[Text, ...] = Field(
        default=(), exclude_if=is_empty, description="more train_subjects: names of shipped lists, or files"
    )
    eval_lists: tuple[Text, ...] = Field(
        default=(), exclude_if=is_empty, description="more eval_subjects: names of shipped lists, or files"
    )
    generic_lists: tuple[Text, ...] = Field(
        default=(), exclude_if=is_empty, description="more generic prompts, used unchanged"
    )
    retained_lists: tuple[Text, ...] = Field(default=(), exclude_if=is_empty, description="more retained_subjects")
    one_person: bool = Field(
        default=True,
        exclude_if=bool,
        description="reject prompts that show several people, from lists and language models",
    )
    benchmarks: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$")], BenchmarkConfig] = Field(
        default={},
        exclude_if=is_empty,
        description="further benchmarks by name; descriptor, couples and age need no list",
    )
    n_train: int = Field(default=0, ge=0, description="llm: number of training prompts to write")
    llm: LLMConfig | None = Field(default=None, description="language model for source 'llm'")

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
