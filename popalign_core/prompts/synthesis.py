"""Training prompts written by a language model behind any OpenAI-compatible endpoint.

The model is asked for subjects only (occupations and the like), as structured JSON; each is put into the carrier
template here, so that its style cannot leak into the prompts. It is asked in rounds: the requests of a round depend on
what the rounds before brought, are sent in parallel, and their answers are taken in the order of the requests. So the
prompts are those of the answers, whoever came first. Every answer is kept beside its request: a rerun in the same
folder replays what was paid for and asks only for what is missing.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from popalign_core.config import Axis, LLMConfig, PromptsConfig
from popalign_core.errors import ConfigError, ServiceError
from popalign_core.prompts.checks import MAX_SUBJECT_WORDS, subject_fault
from popalign_core.prompts.endpoint import Endpoint
from popalign_core.prompts.grammar import neutral_or_generic_row, prompt_table, write_prompts
from popalign_core.prompts.pacing import SpentError
from popalign_core.prompts.similar import SimilarTexts, heads

BATCH_SIZE = 25
"""Subjects asked for in one call; longer lists repeat themselves."""

_SYSTEM = (
    "You write subjects for pictures of {who}: occupations, hobbies and roles, as diverse as you can. "
    f"Each is a short English noun phrase in the singular, at most {MAX_SUBJECT_WORDS} words, without an article. "
    "Never name or imply gender, race, ethnicity, nationality, age or religion. "
    'Answer in JSON only: {{"subjects": ["...", "..."]}}'
)

OnCall = Callable[[int, int], None]
Wish = tuple[str | None, int]
"""A theme, and how many subjects are asked for at once."""


@dataclass
class _Harvest:
    """What the answers so far have brought."""

    config: PromptsConfig
    axes: Sequence[Axis]
    held_out: SimilarTexts
    accepted: list[tuple[str, str | None]] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    taken: SimilarTexts = field(default_factory=SimilarTexts)

    def take(self, subjects: Sequence[str], theme: str | None, n_wanted: int) -> None:
        """Accept what is fine, until the theme has so many."""
        n_theme = len(self.of_theme(theme))
        for raw in subjects:
            subject = " ".join(raw.split()).removesuffix(".")
            fault = subject_fault(subject, self.axes, self.taken, self.held_out, one_person=self.config.one_person)
            if fault is None and n_theme == n_wanted:
                fault = "surplus"
            if fault is not None:
                self.rejected.append((raw, fault))
                continue
            self.accepted.append((subject, theme))
            self.taken.add(subject)
            n_theme += 1

    def of_theme(self, theme: str | None) -> list[str]:
        """The subjects accepted for a theme."""
        return [subject for subject, of in self.accepted if of == theme]


def synthesise_prompts(
    config: PromptsConfig, axes: Sequence[Axis], folder: Path, on_call: OnCall | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `config.n_train` neutral training prompts with a language model; the rest comes from the grammar.

    Args:
        config: Endpoint, number of prompts, themes, carrier; its other subjects are used as they are,
            its training subjects are not used.
        axes: The attributes no subject may name.
        folder: Where every raw answer is kept as JSON, `call-NNNN-<request>.json`; give the same folder again to
            pay nothing twice.
        on_call: Told (accepted, wanted) after each answer, replayed ones included.

    Returns:
        A `prompts` table, and the rejects: `text` (the subject, or the start of an unreadable answer) and `reason`
        (see `checks.subject_fault`; also `surplus`, `refusal`, `truncated`, `in_reasoning`, `not_json`).

    Raises:
        ConfigError: When there is no endpoint configured, or the key can be none.
        ServiceError: When the endpoint is down, still refuses after the retries, keeps answering something else
            than the JSON asked for, or the budget was not enough.
        InputError: When a kept answer was damaged.
    """
    if config.llm is None or config.n_train == 0:
        raise ConfigError(f"prompts.llm is {config.llm} and n_train {config.n_train}; configure both to ask a model")
    folder.mkdir(parents=True, exist_ok=True)
    harvest = _Harvest(config, axes, SimilarTexts(heads(config.eval_subjects)))
    with closing(Endpoint(config.llm, folder)) as endpoint:
        try:
            _gather(endpoint, config.llm, harvest, on_call)
        except SpentError as spent:
            raise ServiceError(
                f"{config.llm.base_url}: {len(harvest.accepted)} of {config.n_train} usable prompts after {spent}; "
                "raise that limit and run again: the answers so far are kept and will not be paid for again"
            ) from spent
    return _tables(config, harvest, f"llm:{config.llm.model}")


def _gather(endpoint: Endpoint, llm: LLMConfig, harvest: _Harvest, on_call: OnCall | None) -> None:
    quotas = theme_quotas(harvest.config.n_train, llm.themes)
    n_calls = 0
    while wishes := _wishes(quotas, harvest):
        requests = [_request(llm, harvest, wish) for wish in wishes]
        for number, reply in endpoint.ask_all(n_calls, requests):
            theme, _ = wishes[number]
            harvest.rejected.extend(reply.unreadable)
            harvest.take(reply.subjects, theme, quotas[theme])
            if on_call is not None:
                on_call(len(harvest.accepted), harvest.config.n_train)
        n_calls += len(requests)


def theme_quotas(n_wanted: int, themes: Sequence[str]) -> dict[str | None, int]:
    """How many subjects each theme gets: equally many, the first ones one more; None stands for no theme."""
    names: Sequence[str | None] = themes or (None,)
    share, rest = divmod(n_wanted, len(names))
    return {name: share + (number < rest) for number, name in enumerate(names)}


def expected_calls(config: PromptsConfig) -> int:
    """Answers to pay for when none has to be asked for again and no subject is rejected; 0 without a language model."""
    if config.source != "llm" or config.llm is None:
        return 0
    quotas = theme_quotas(config.n_train, config.llm.themes).values()
    return min(config.llm.max_calls, sum(math.ceil(quota / BATCH_SIZE) for quota in quotas))


def _wishes(quotas: dict[str | None, int], harvest: _Harvest) -> list[Wish]:
    """The next round: what each theme lacks, in batches."""
    there = Counter(theme for _, theme in harvest.accepted)
    missing = {theme: quota - there[theme] for theme, quota in quotas.items()}
    return [(theme, min(BATCH_SIZE, n - start)) for theme, n in missing.items() for start in range(0, n, BATCH_SIZE)]


def _request(llm: LLMConfig, harvest: _Harvest, wish: Wish) -> dict[str, Any]:
    theme, n_subjects = wish
    text = f"Write {n_subjects} subjects" + (f" from the field of {theme}." if theme else ".")
    if accepted := harvest.of_theme(theme):
        text += " Do not repeat any of these: " + ", ".join(accepted) + "."
    system = _SYSTEM.format(who="one person" if harvest.config.one_person else "people")
    return {
        "model": llm.model,
        "temperature": llm.temperature,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}],
    }


def _tables(config: PromptsConfig, harvest: _Harvest, source: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [neutral_or_generic_row(name, "neutral", "train", config.carrier, source) for name, _ in harvest.accepted]
    offline = write_prompts(config.model_copy(update={"train_subjects": ()}))
    prompts = prompt_table([*rows, *offline.to_dict("records")])  # type: ignore[list-item]  # pandas: Hashable keys
    return prompts, pd.DataFrame(harvest.rejected, columns=["text", "reason"])
