"""Stage `identities`: one specific child of every neutral prompt for each cell of the axes."""

from collections.abc import Sequence
from typing import Any

from popalign_core.config import Axis, PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.stage import Progress, Request, no_progress, produce

STAGE = "identities"
VERSION = "1"


def request(config: PipelineConfig, *, prompts: ArtifactRef) -> Request:
    """What the key depends on; targets are not part of it."""
    payload: dict[str, Any] = {"axes": _hashed(config.identity_axes), "carrier": config.prompts.carrier}
    if varied := {name: _hashed(axes) for name, axes in _varied(config).items()}:
        payload["benchmarks"] = varied
    return Request(STAGE, VERSION, payload, {"prompts": prompts.key})


def _hashed(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    return [axis.model_dump(mode="json", exclude={"target", "of", "only_measured"}) for axis in axes]


def _varied(config: PipelineConfig) -> dict[str, tuple[Axis, ...]]:
    """Benchmark of specific prompts -> the axes that they vary over."""
    benchmarks = config.prompts.benchmarks.items()
    return {name: config.measured_axes(name) for name, benchmark in benchmarks if benchmark.kind == "specific"}


def add_identities(
    prompts: ArtifactRef, *, config: PipelineConfig, runtime: RuntimeConfig, on_progress: Progress = no_progress
) -> ArtifactRef:
    """Publish table `prompts`: the input's rows and their specific children, those of named benchmarks last."""

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        from popalign_core.identities.augment import augment_benchmarks, augment_prompts

        table = augment_prompts(store.read_table(prompts, "prompts"), config.identity_axes, config.prompts.carrier)
        build.write_table("prompts", augment_benchmarks(table, _varied(config)))
        on_progress(1, 1)

    return produce(request(config, prompts=prompts), runtime, fill)
