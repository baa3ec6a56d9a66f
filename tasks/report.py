"""Stage `report`: the paired comparison of base and aligned model, and one self-contained page."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.comparison import N_PROMPTS, count_costs, printed_configuration, shown_configuration
from tasks.stage import Progress, Request, no_progress, produce

if TYPE_CHECKING:
    from popalign_core.evaluation.metrics import SystemFrames
    from popalign_core.report.inputs import ReportInputs

STAGE = "report"
PAGE, CARD = "report.html", "report.md"
VERSION = "5"

SYSTEMS = ("base", "aligned")

Inputs = Mapping[str, ArtifactRef]


def request(config: PipelineConfig, **inputs: ArtifactRef) -> Request:
    """What the key depends on: the whole configuration, which the page shows, without the model's path."""
    return Request(STAGE, VERSION, shown_configuration(config), {name: ref.key for name, ref in inputs.items()})


def write_report(
    *, config: PipelineConfig, runtime: RuntimeConfig, on_progress: Progress = no_progress, **inputs: ArtifactRef
) -> ArtifactRef:
    """Publish table `comparison` (aligned minus base, paired), `report.html` and the same in brief as `report.md`.

    Args:
        config: Of the pipeline.
        runtime: Which store.
        on_progress: Told when the page is written.
        inputs: `prompts, attributes, preferences, train`, `calibration` of the classifier where there is one, and for
            both systems `base_sample, base_attributes, base_scores, base_metrics` and the same with `aligned_`.

    Raises:
        InputError: When the two systems were not drawn with the same prompts and seeds.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        from popalign_core.report.markdown import report_markdown
        from popalign_core.report.page import build_report

        page = gather_inputs(store, inputs, config)
        build.write_table("comparison", page.comparison)
        (build.folder / PAGE).write_text(build_report(page), encoding="utf-8")
        (build.folder / CARD).write_text(report_markdown(page), encoding="utf-8")
        on_progress(1, 1)

    return produce(request(config, **inputs), runtime, fill)


def gather_inputs(store: Store, inputs: Inputs, config: PipelineConfig) -> "ReportInputs":
    """Read everything the page shows."""
    from popalign_core.evaluation.metrics import compare_systems, per_prompt_table
    from popalign_core.report.inputs import ReportInputs
    from tasks.grid import read_pairs

    prompts = store.read_table(inputs["prompts"], "prompts")
    frames = [_frames(store, system, inputs) for system in SYSTEMS]
    axes = config.identity_axes
    by_prompt = [per_prompt_table(f.name, prompts, f.images, f.attributes, axes, config.benchmark_axes) for f in frames]
    calibration = store.read_table(inputs["calibration"], "calibration") if "calibration" in inputs else None
    how = (config.axes, config.evaluation, calibration, config.benchmark_axes)
    return ReportInputs(
        title="PopAlign report",
        base=SYSTEMS[0],
        aligned=SYSTEMS[1],
        axes=axes,
        metrics=pd.concat([store.read_table(inputs[f"{s}_metrics"], "metrics") for s in SYSTEMS], ignore_index=True),
        comparison=compare_systems(prompts, frames[0], frames[1], *how),
        per_prompt=pd.concat(by_prompt, ignore_index=True),
        attributes={frame.name: frame.attributes for frame in frames},
        grids=read_pairs(store, prompts, inputs["base_sample"], inputs["aligned_sample"], N_PROMPTS),
        training_log=store.read_table(inputs["train"], "training_log"),
        drops=pd.concat(
            [store.read_table(inputs[s], "drops") for s in ("attributes", "preferences")], ignore_index=True
        ),
        costs=pd.concat([count_costs(store, s, [inputs[f"{s}_sample"]]) for s in SYSTEMS], ignore_index=True),
        reproducibility=_reproducibility(store, inputs, config),
        confidence=config.evaluation.confidence,
    )


def _frames(store: Store, system: str, inputs: Inputs) -> "SystemFrames":
    from popalign_core.evaluation.metrics import SystemFrames
    from tasks.tables import read_images

    return SystemFrames(
        system,
        read_images(store, inputs[f"{system}_sample"]),
        store.read_table(inputs[f"{system}_attributes"], "attributes"),
        store.read_table(inputs[f"{system}_scores"], "scores"),
    )


def _reproducibility(store: Store, inputs: Inputs, config: PipelineConfig) -> dict[str, str]:
    """The command, artifacts behind the page, versions that trained the model, and the configuration."""
    libraries = store.manifest(inputs["train"]).libraries
    return {
        "command": "popalign run --config FILE.json, the file holding the configuration below",
        **{name.replace("_", " "): str(ref) for name, ref in inputs.items()},
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(libraries.items())),
        "configuration": printed_configuration(config),
    }
