"""Stage `benchmarks`: the evaluation prompts of benchmarks with names of their own, beside all others.

A stage for itself, so that another benchmark changes nothing of what is trained.
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from popalign_core.config import Axis, BenchmarkConfig, PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build
from tasks.common.image_tables import drops_table
from tasks.common.prompt_lists import PromptList, read_benchmarks
from tasks.common.stage_object import Inputs, Progress, Stage, View, drop_fields

if TYPE_CHECKING:
    from popalign_core.prompts.sifting import Sieve


class BenchmarksView(View):
    """The benchmarks with names of their own, the axes that vary on each, and those that no neutral prompt names."""

    benchmarks: dict[str, BenchmarkConfig]
    axes: dict[str, tuple[Axis, ...]]
    identity_axes: tuple[Axis, ...]
    carrier: str

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef]) -> Self | None:
        """None where no benchmark has a name of its own: the prompts are the answer then."""
        if not config.prompts.benchmarks:
            return None
        # how many images a prompt is the sample's business, and which axes are measured is said by `axes`
        named = {name: drop_fields(each, "n_images", "axes") for name, each in config.prompts.benchmarks.items()}
        axes = {name: _without_target(config.measured_axes(name)) for name in named}
        identity_axes = _without_target(config.identity_axes)
        return cls(benchmarks=named, axes=axes, identity_axes=identity_axes, carrier=config.prompts.carrier)

    def hashed(self) -> dict[str, Any]:
        """Lists by what they say, cut down to as many prompts as are taken.

        Raises:
            InputError: When a list cannot be read.
        """
        hashed = {
            name: self.benchmarks[name].model_dump(mode="json", include={"kind", "carrier"})
            | {"axes": [axis.model_dump(mode="json", exclude={"target"}) for axis in self.axes[name]]}
            | {"list": part.digest()}
            for name, part in read_benchmarks(self.benchmarks).items()
        }
        return {"benchmarks": hashed, "carrier": self.carrier}

    def unhashed(self) -> dict[str, str]:
        """The axes of the other prompts."""
        return {"identity_axes": "in the key of the prompts"}


def _without_target(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    return tuple(drop_fields(axis, "target", "of") for axis in axes)


def _fill(view: BenchmarksView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write table `prompts`, the input's rows and those of the benchmarks, and of listed prompts that cannot be used
    `rejected` and, by reason, `drops`.

    Raises:
        InputError: When no prompt of a list can be used.
    """
    from popalign_core.identities.augment import augment_benchmarks
    from popalign_core.prompts.benchmarks import benchmark_prompts
    from popalign_core.prompts.checks import check_prompts
    from popalign_core.prompts.sifting import Sieve

    prompts = inputs.read_table("prompts", "prompts")
    tables, rejected = [prompts], list[tuple[str, str]]()
    for name, part in read_benchmarks(view.benchmarks).items():
        # of several people too: a benchmark is what it is
        sieve = Sieve(view.axes[name], one_person=False, rejected=rejected)
        texts = _usable(sieve, part, view.benchmarks[name].kind, prompts)
        tables.append(benchmark_prompts(name, view.benchmarks[name], texts, view.carrier, sieve.carriers))
    table = pd.concat(tables, ignore_index=True)
    check_prompts(table, view.identity_axes)
    build.write_table("prompts", augment_benchmarks(table, view.axes))
    build.write_table("drops", drops_table(build.ref.stage, Counter(reason for _, reason in rejected)))
    build.write_table("rejected", pd.DataFrame(rejected, columns=["text", "reason"]))
    on_progress(1, 1)


def _usable(sieve: "Sieve", part: PromptList, kind: str, prompts: pd.DataFrame) -> list[str]:
    """The prompts of a list that can be used, and of which nothing is trained on."""
    trained = prompts[prompts["split"] == "train"]
    given = [(part.name, part.texts)]
    if kind == "generic":
        return sieve.prompts(given, held_out=[*trained["text"], *trained["subject"]])
    return sieve.subjects(given, held_out=trained.loc[trained["kind"] == "neutral", "subject"].tolist())


add_benchmarks = Stage("benchmarks", "2", BenchmarksView.of, _fill, inputs=("prompts",))
