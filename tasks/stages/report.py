"""Stage `report`: base and aligned model compared, with the training between them, on one self-contained page."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.presets import preset_name
from storage.store import ArtifactRef, Build
from tasks.common.stage_object import Inputs, Progress, Stage
from tasks.stages.comparison import N_PROMPTS, count_costs, tabulate_system_drops
from tasks.stages.page_view import PageView, hashed_configuration

if TYPE_CHECKING:
    from popalign_core.evaluation.metrics import SystemFrames
    from popalign_core.report.comparison_inputs import ComparisonInputs

PAGE, CARD = "report.html", "report.md"

SYSTEMS = ("base", "aligned")
_PARTS = ("sample", "attributes", "scores", "metrics")


class ReportView(PageView):
    """The whole configuration, which the page shows."""

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef]) -> Self:
        """Of a run."""
        return cls(configuration=cls.shown(config))

    def hashed(self) -> dict[str, Any]:
        """Without paths."""
        return hashed_configuration(self.configuration)


def _fill(view: ReportView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write table `comparison` (aligned minus base, paired), `report.html` and the same in brief as `report.md`.

    Raises:
        InputError: When the two systems were not sampled with the same prompts and seeds.
    """
    from popalign_core.report.card_markdown import comparison_markdown
    from popalign_core.report.comparison_page import build_comparison

    page = gather_report_inputs(inputs, view)
    build.write_table("comparison", page.comparison)
    (build.folder / PAGE).write_text(build_comparison(page), encoding="utf-8")
    (build.folder / CARD).write_text(comparison_markdown(page), encoding="utf-8")
    on_progress(1, 1)


def gather_report_inputs(inputs: Inputs, view: ReportView) -> "ComparisonInputs":
    """Read everything the page shows."""
    from popalign_core.evaluation.metrics import compare_systems, per_prompt_table
    from popalign_core.report.comparison_inputs import ComparisonInputs
    from tasks.stages.image_grid import read_grids

    store, config = inputs.store, view.configuration
    prompts = inputs.read_table("prompts", "prompts")
    frames = [_frames(inputs, system) for system in SYSTEMS]
    axes = config.identity_axes
    by_prompt = [per_prompt_table(f.name, prompts, f.images, f.attributes, axes, config.benchmark_axes) for f in frames]
    calibration = inputs.read_table("calibration", "calibration") if "calibration" in inputs else None
    how = (config.axes, config.evaluation, calibration, config.benchmark_axes)
    samples = {system: inputs[f"{system}_sample"] for system in SYSTEMS}
    return ComparisonInputs(
        title="PopAlign report",
        model=config.model.name,
        preset=preset_name(config),
        reference=SYSTEMS[0],
        systems=SYSTEMS,
        axes=axes,
        metrics=pd.concat([inputs.read_table(f"{s}_metrics", "metrics") for s in SYSTEMS], ignore_index=True),
        comparison=compare_systems(prompts, frames[0], frames[1], *how),
        per_prompt=pd.concat(by_prompt, ignore_index=True),
        grids=read_grids(store, prompts, samples, N_PROMPTS),
        drops=pd.concat([tabulate_system_drops(frame) for frame in frames], ignore_index=True),
        costs=pd.concat([count_costs(store, name, [sample]) for name, sample in samples.items()], ignore_index=True),
        training_log=inputs.read_table("train", "training_log"),
        training_drops=pd.concat(
            [inputs.read_table(stage, "drops") for stage in ("attributes", "preferences")], ignore_index=True
        ),
        reproducibility=_reproducibility(inputs, view),
        confidence=config.evaluation.confidence,
    )


def _frames(inputs: Inputs, system: str) -> "SystemFrames":
    from popalign_core.evaluation.metrics import SystemFrames
    from tasks.common.image_tables import read_images

    return SystemFrames(
        system,
        read_images(inputs.store, inputs[f"{system}_sample"]),
        inputs.read_table(f"{system}_attributes", "attributes"),
        inputs.read_table(f"{system}_scores", "scores"),
    )


def _reproducibility(inputs: Inputs, view: ReportView) -> dict[str, str]:
    """The command, artifacts behind the page, versions that trained the model, and the configuration."""
    libraries = inputs.store.manifest(inputs["train"]).libraries
    return {
        "command": "popalign run --config FILE.json, the file holding the configuration below",
        **{name.replace("_", " "): str(ref) for name, ref in inputs.items()},
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(libraries.items())),
        "configuration": view.printed(),
    }


write_report = Stage(
    "report",
    "10",
    ReportView.of,
    _fill,
    inputs=(
        *("prompts", "attributes", "preferences", "train"),
        *(f"{system}_{part}" for system in SYSTEMS for part in _PARTS),
    ),
    optional=("calibration",),
)
