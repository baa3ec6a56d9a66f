"""Prompts: subjects, lists, or a language model that writes them."""

from typing import Literal, Self

from pydantic import Field, model_validator

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
    n_train: int = Field(default=0, ge=0, description="llm: how many training prompts to write")
    llm: LLMConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{}" not in self.carrier:
            raise ValueError(f"carrier {self.carrier!r} has no {{}}; write for example 'a photo of {{}}'")
        if self.source == "llm" and (self.llm is None or self.n_train == 0):
            raise ValueError("source 'llm' needs an [prompts.llm] table and n_train > 0")
        return self
