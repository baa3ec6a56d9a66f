"""Stage `prompts`: the neutral and the generic prompts, from the offline grammar or from a language model."""

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.stage import Progress, Request, no_progress, produce
from tasks.tables import drops_table

STAGE = "prompts"
VERSION = "1"

ANSWERS = "answers"

DELIVERY = {"llm": {"base_url", "api_key_env", "max_retries", "timeout_s"}}
"""Fields that say how the answers of a language model reach us, not what they say: never part of a key."""


def request(config: PipelineConfig) -> Request:
    """What the key depends on. The axes count: a neutral prompt must name none of their words."""
    axes = [axis.model_dump(mode="json", exclude={"target"}) for axis in config.axes]
    return Request(
        STAGE, VERSION, {"prompts": config.prompts.model_dump(mode="json", exclude=DELIVERY), "axes": axes}, {}
    )


def write_prompts(
    *, config: PipelineConfig, runtime: RuntimeConfig, on_progress: Progress = no_progress
) -> ArtifactRef:
    """Publish table `prompts`; with a language model also `rejected` and, by reason, `drops`.

    Raises:
        InputError: When a prompt is doubled, names an identity or leaks between the splits, or there is none.
        ServiceError: When the language model's endpoint does not answer as it should.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        _fill(build, config, on_progress)

    return produce(request(config), runtime, fill)


def _fill(build: Build, config: PipelineConfig, on_progress: Progress) -> None:
    from popalign_core.prompts.checks import check_prompts

    table = _ask_model(build, config, on_progress) if config.prompts.source == "llm" else _offline(config)
    check_prompts(table, config.axes)
    build.write_table("prompts", table)
    on_progress(1, 1)


def _offline(config: PipelineConfig) -> pd.DataFrame:
    from popalign_core.prompts.grammar import write_prompts as write_offline

    return write_offline(config.prompts)


def _ask_model(build: Build, config: PipelineConfig, on_progress: Progress) -> pd.DataFrame:
    """The model's prompts; its raw answers stay in the artifact, what was rejected is counted by reason."""
    from popalign_core.prompts.synthesis import synthesise_prompts

    table, rejected = synthesise_prompts(config.prompts, config.axes, build.folder / ANSWERS, on_progress)
    build.write_table("drops", drops_table(STAGE, rejected["reason"].value_counts().to_dict()))
    build.write_table("rejected", rejected)
    return table
