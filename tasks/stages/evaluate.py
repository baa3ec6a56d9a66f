"""Stage `evaluate`: the metrics table of one system, from statistics that other stages have read off its images."""

from collections.abc import Mapping
from typing import Any, Self

from popalign_core.config import Axis, EvaluationConfig, PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build
from tasks.common.stage_object import Inputs, Progress, Stage, View, drop_fields


class EvaluateView(View):
    """What metrics depend on in addition to the statistics.

    Attributes:
        system: Its name stands in the table.
        evaluation: Without scorers, which are in the key of the scores, and the classifier for comparisons.
        axes: With their targets.
        benchmark_axes: Benchmark -> names of the axes measured on it, for those with other axes than all.
    """

    system: str
    evaluation: EvaluationConfig
    axes: tuple[Axis, ...]
    benchmark_axes: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, system: str) -> Self:
        """Of the system that is measured."""
        return cls(
            system=system,
            evaluation=drop_fields(config.evaluation, "scorers", "second_classifier", "readings"),
            axes=tuple(drop_fields(axis, "words") for axis in config.axes),
            benchmark_axes=config.benchmark_axes,
        )

    def hashed(self) -> dict[str, Any]:
        """All but which benchmark measures what."""
        return {
            "system": self.system,
            "evaluation": self.evaluation.model_dump(mode="json"),
            "axes": [axis.model_dump(mode="json", exclude={"words"}) for axis in self.axes],
        }

    def unhashed(self) -> dict[str, str]:
        """Which benchmark measures what."""
        return {"benchmark_axes": "in the key of the prompts"}


def _fill(view: EvaluateView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write table `metrics`: one row a benchmark, metric and axis, with interval and floor.

    With a `calibration` of the same classifier there are also rows of corrected shares and discrepancies.

    Raises:
        InputError: When the tables do not fit together, or the calibration is of another classifier.
    """
    import pandas as pd

    from popalign_core.evaluation.frames import SystemFrames
    from popalign_core.evaluation.metrics import compute_metrics
    from popalign_core.evaluation.quality.set_distances import unmeasured_rows
    from tasks.common.image_tables import read_images
    from tasks.stages.scores import read_unmeasured

    table, images = inputs.read_table("prompts", "prompts"), read_images(inputs.store, inputs["sample"])
    read, scored = inputs.read_table("attributes", "attributes"), inputs.read_table("scores", "scores")
    frames = SystemFrames(view.system, images, read, scored)
    metrics = compute_metrics(
        table,
        frames,
        view.axes,
        view.evaluation,
        inputs.read_table("calibration", "calibration") if "calibration" in inputs else None,
        view.benchmark_axes,
    )
    rest = unmeasured_rows(view.system, table, images, read_unmeasured(inputs.store, inputs["scores"]))
    build.write_table("metrics", pd.concat([metrics, rest], ignore_index=True) if len(rest) else metrics)
    on_progress(1, 1)


evaluate_system = Stage(
    "evaluate",
    "7",
    EvaluateView.of,
    _fill,
    inputs=("prompts", "sample", "attributes", "scores"),
    optional=("calibration",),
)
