"""Stage `prompts`: the neutral and the generic prompts, from lists, the offline grammar or a language model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from popalign_core.config import Axis, PipelineConfig, PromptsConfig, RuntimeConfig
from storage.store import ArtifactRef, Build
from tasks.common.image_tables import drops_table
from tasks.common.needs import Need, prompt_needs
from tasks.common.prompt_lists import FIELDS, PromptList, read_lists
from tasks.common.stage_object import Inputs, Progress, Stage, View, drop_fields

if TYPE_CHECKING:
    from popalign_core.prompts.sifting import Sieve

ANSWERS = "answers"

DELIVERY = (
    *("base_url", "api_key_env", "n_parallel", "requests_per_minute", "max_retries", "timeout_s"),
    *("max_calls", "max_tokens_total"),
)
"""Fields of `LLMConfig` that say how the answers of a language model reach us, not what they say: never in a key."""


class PromptsView(View):
    """What decides the prompts. The axes count: a neutral prompt must name none of their words."""

    prompts: PromptsConfig
    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef]) -> Self:
        """Without the benchmarks, which are a stage of their own."""
        axes = tuple(drop_fields(axis, "target", "phrase", "of") for axis in config.identity_axes)
        return cls(prompts=drop_fields(config.prompts, "benchmarks"), axes=axes)

    def hashed(self) -> dict[str, Any]:
        """Lists by what they say, whatever file they come in.

        Raises:
            InputError: When a list cannot be read.
        """
        lists = {field: [part.digest() for part in parts] for field, parts in read_lists(self.prompts).items()}
        written = self.prompts.model_dump(mode="json", exclude={"llm": set(DELIVERY), **dict.fromkeys(FIELDS, True)})
        axes = [axis.model_dump(mode="json", exclude={"target"}) for axis in self.axes]
        return {"prompts": written | lists, "axes": axes}

    def unhashed(self) -> dict[str, str]:
        """How the answers of a language model reach us."""
        return {f"prompts.llm.{field}": "how answers reach us, not what they say" for field in DELIVERY}


def _fill(view: PromptsView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write table `prompts`; with a language model or lists also `rejected` and, by reason, `drops`.

    Raises:
        InputError: When a prompt is doubled, names an identity or leaks between the splits, or there is none.
        ServiceError: When the language model's endpoint does not answer as it should.
    """
    from popalign_core.prompts.checks import check_prompts
    from popalign_core.prompts.grammar import prompt_table, verbatim_row, with_carriers
    from popalign_core.prompts.sifting import Sieve

    lists, sieve = read_lists(view.prompts), Sieve(view.axes, view.prompts.one_person)
    written = _with_subjects(view.prompts, lists, sieve)
    generic = [
        verbatim_row(text, split)
        for field, split in (("generic_lists", "eval"), ("retained_lists", "train"))
        for text in sieve.prompts(_named(lists, field))
    ]
    table, rejected = _write(build, written, view.axes, on_progress)
    table = with_carriers(table, sieve.carriers)
    if generic:
        table = pd.concat([table, prompt_table(generic)], ignore_index=True)
    check_prompts(table, view.axes)
    build.write_table("prompts", table)
    if lists or view.prompts.source == "llm":
        rejected = pd.concat([sieve.table(), rejected], ignore_index=True)
        build.write_table("drops", drops_table(build.ref.stage, rejected["reason"].value_counts().to_dict()))
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
    build: Build, written: PromptsConfig, axes: Sequence[Axis], on_progress: Progress
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The prompts, and what a language model wrote in vain; its raw answers stay in the artifact."""
    if written.source == "llm":
        from popalign_core.prompts.synthesis import synthesise_prompts

        return synthesise_prompts(written, axes, build.folder / ANSWERS, on_progress)
    from popalign_core.prompts.grammar import write_prompts as write_offline

    return write_offline(written), pd.DataFrame(columns=["text", "reason"])


def _needs(config: PipelineConfig, runtime: RuntimeConfig) -> Iterator[Need]:
    return prompt_needs(config.prompts)


write_prompts = Stage("prompts", "2", PromptsView.of, _fill, needs=_needs)
