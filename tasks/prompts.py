"""Stage `prompts`: the neutral and the generic prompts, from lists, the offline grammar or a language model."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from popalign_core.config import PipelineConfig, PromptsConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.prompt_lists import FIELDS, PromptList, read_lists
from tasks.stage import Progress, Request, no_progress, produce
from tasks.tables import drops_table

if TYPE_CHECKING:
    from popalign_core.prompts.sifting import Sieve

STAGE = "prompts"
VERSION = "1"

ANSWERS = "answers"

DELIVERY: Any = {
    "llm": {
        "base_url", "api_key_env", "n_parallel", "requests_per_minute", "max_retries", "timeout_s", "max_calls",
        "max_tokens_total",
    },
    **dict.fromkeys((*FIELDS, "benchmarks"), True),
}  # fmt: skip
"""Fields that say how the answers of a language model or the lists reach us, not what they say, and those of stage
`benchmarks`: never part of a key.
"""


def request(config: PipelineConfig) -> Request:
    """What the key depends on. The axes count: a neutral prompt must name none of their words.

    Raises:
        InputError: When a prompt list, whose content is part of the key, cannot be read.
    """
    axes = [axis.model_dump(mode="json", exclude={"target", "phrase", "of"}) for axis in config.identity_axes]
    lists = {field: [part.digest() for part in parts] for field, parts in read_lists(config.prompts).items()}
    payload = {"prompts": config.prompts.model_dump(mode="json", exclude=DELIVERY) | lists, "axes": axes}
    return Request(STAGE, VERSION, payload, {})


def write_prompts(
    *, config: PipelineConfig, runtime: RuntimeConfig, on_progress: Progress = no_progress
) -> ArtifactRef:
    """Publish table `prompts`; with a language model or lists also `rejected` and, by reason, `drops`.

    Raises:
        InputError: When a prompt is doubled, names an identity or leaks between the splits, or there is none.
        ServiceError: When the language model's endpoint does not answer as it should.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        _fill(build, config, on_progress)

    return produce(request(config), runtime, fill)


def _fill(build: Build, config: PipelineConfig, on_progress: Progress) -> None:
    from popalign_core.prompts.checks import check_prompts
    from popalign_core.prompts.grammar import prompt_table, verbatim_row
    from popalign_core.prompts.sifting import Sieve

    lists, sieve = read_lists(config.prompts), Sieve(config.identity_axes, config.prompts.one_person)
    written = _with_subjects(config.prompts, lists, sieve)
    generic = [
        verbatim_row(text, split)
        for field, split in (("generic_lists", "eval"), ("retained_lists", "train"))
        for text in sieve.prompts(_named(lists, field))
    ]
    table, rejected = _write(build, written, config, on_progress)
    if generic:
        table = pd.concat([table, prompt_table(generic)], ignore_index=True)
    check_prompts(table, config.identity_axes)
    build.write_table("prompts", table)
    if lists or config.prompts.source == "llm":
        rejected = pd.concat([sieve.table(), rejected], ignore_index=True)
        build.write_table("drops", drops_table(STAGE, rejected["reason"].value_counts().to_dict()))
        build.write_table("rejected", rejected)
    on_progress(1, 1)


def _with_subjects(prompts: PromptsConfig, lists: Mapping[str, Sequence[PromptList]], sieve: "Sieve") -> PromptsConfig:
    """With the usable subjects of the lists; training ones only where no language model writes them."""
    held_out = (*prompts.eval_subjects, *sieve.subjects(_named(lists, "eval_lists"), prompts.eval_subjects))
    trained = prompts.train_subjects
    if prompts.source != "llm":
        trained += tuple(sieve.subjects(_named(lists, "train_lists"), trained, held_out))
    return prompts.model_copy(update={"train_subjects": trained, "eval_subjects": held_out})


def _named(lists: Mapping[str, Sequence[PromptList]], field: str) -> list[tuple[str, Sequence[str]]]:
    return [(part.name, part.texts) for part in lists.get(field, ())]


def _write(
    build: Build, written: PromptsConfig, config: PipelineConfig, on_progress: Progress
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The prompts, and what a language model wrote in vain; its raw answers stay in the artifact."""
    if written.source == "llm":
        from popalign_core.prompts.synthesis import synthesise_prompts

        return synthesise_prompts(written, config.identity_axes, build.folder / ANSWERS, on_progress)
    from popalign_core.prompts.grammar import write_prompts as write_offline

    return write_offline(written), pd.DataFrame(columns=["text", "reason"])
