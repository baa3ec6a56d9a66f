"""Stage `benchmarks`: the evaluation prompts of benchmarks with names of their own, beside all others.

A stage for itself, so that another benchmark changes nothing of what is trained.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.prompt_lists import PromptList, read_benchmarks
from tasks.stage import Progress, Request, no_progress, produce
from tasks.tables import drops_table

if TYPE_CHECKING:
    from popalign_core.prompts.sifting import Sieve

STAGE = "benchmarks"
VERSION = "1"


def request(config: PipelineConfig, *, prompts: ArtifactRef) -> Request | ArtifactRef:
    """What the key depends on; the prompts themselves where no benchmark has a name of its own.

    Raises:
        InputError: When a list, whose content is part of the key, cannot be read.
    """
    lists = read_benchmarks(config.prompts)
    if not lists:
        return prompts
    benchmarks = {name: _hashed(config, name) | {"list": part.digest()} for name, part in lists.items()}
    return Request(
        STAGE, VERSION, {"benchmarks": benchmarks, "carrier": config.prompts.carrier}, {"prompts": prompts.key}
    )


def _hashed(config: PipelineConfig, name: str) -> dict[str, Any]:
    axes = [axis.model_dump(mode="json", exclude={"target", "of"}) for axis in config.measured_axes(name)]
    return config.prompts.benchmarks[name].model_dump(mode="json", include={"kind", "carrier"}) | {"axes": axes}


def add_benchmarks(
    prompts: ArtifactRef, *, config: PipelineConfig, runtime: RuntimeConfig, on_progress: Progress = no_progress
) -> ArtifactRef:
    """Publish table `prompts`, the input's rows and those of the benchmarks, and of listed prompts that cannot be used
    `rejected` and, by reason, `drops`. Without such a benchmark the prompts are the answer.

    Raises:
        InputError: When a list cannot be read, or no prompt in it can be used.
    """
    asked = request(config, prompts=prompts)
    if isinstance(asked, ArtifactRef):
        return asked

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        _fill(build, store.read_table(prompts, "prompts"), config)
        on_progress(1, 1)

    return produce(asked, runtime, fill)


def _fill(build: Build, prompts: pd.DataFrame, config: PipelineConfig) -> None:
    from popalign_core.identities.augment import augment_benchmarks
    from popalign_core.prompts.benchmarks import benchmark_prompts
    from popalign_core.prompts.checks import check_prompts
    from popalign_core.prompts.sifting import Sieve

    tables, rejected = [prompts], list[tuple[str, str]]()
    for name, part in read_benchmarks(config.prompts).items():
        # of several people too: a benchmark is what it is
        sieve = Sieve(config.measured_axes(name), one_person=False, rejected=rejected)
        texts = _usable(sieve, part, config.prompts.benchmarks[name].kind, prompts)
        tables.append(benchmark_prompts(name, config.prompts.benchmarks[name], texts, config.prompts))
    table = pd.concat(tables, ignore_index=True)
    check_prompts(table, config.identity_axes)
    axes = {name: config.measured_axes(name) for name in config.prompts.benchmarks}
    build.write_table("prompts", augment_benchmarks(table, axes))
    build.write_table("drops", drops_table(STAGE, Counter(reason for _, reason in rejected)))
    build.write_table("rejected", pd.DataFrame(rejected, columns=["text", "reason"]))


def _usable(sieve: "Sieve", part: PromptList, kind: str, prompts: pd.DataFrame) -> list[str]:
    """The prompts of a list that can be used, and of which nothing is trained on."""
    trained = prompts[prompts["split"] == "train"]
    given = [(part.name, part.texts)]
    if kind == "generic":
        return sieve.prompts(given, held_out=[*trained["text"], *trained["subject"]])
    return sieve.subjects(given, held_out=trained.loc[trained["kind"] == "neutral", "subject"].tolist())
