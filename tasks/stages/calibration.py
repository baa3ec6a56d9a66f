"""Stage `calibration`: the confusion matrix of the classifier, on identity-specific prompts or people's labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from popalign_core.config import Axis, EvaluationConfig, PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build
from tasks.common.measuring import content_digest
from tasks.common.stage_object import Inputs, Progress, Stage, View, keep_fields


class CalibrationView(View):
    """The classes, the bootstrap, and the labels.

    Attributes:
        axes: Names and classes.
        evaluation: Of the bootstrap alone.
        labels: Path of people's labels, CSV or Parquet with `image_id`, `axis` and `class`; None takes what each
            identity-specific prompt asks for.
    """

    axes: tuple[Axis, ...]
    evaluation: EvaluationConfig
    labels: str | None

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, labels: str | None = None) -> Self:
        """Of the axes that prompts vary over."""
        return cls(
            axes=tuple(keep_fields(axis, "name", "classes") for axis in config.identity_axes),
            evaluation=keep_fields(config.evaluation, "n_bootstrap", "confidence", "seed"),
            labels=labels,
        )

    def hashed(self) -> dict[str, Any]:
        """Labels by their content.

        Raises:
            MissingWeightsError: When there is no file of labels.
        """
        return {
            "axes": [axis.model_dump(mode="json", include={"name", "classes"}) for axis in self.axes],
            "evaluation": self.evaluation.model_dump(mode="json", include={"n_bootstrap", "confidence", "seed"}),
            "labels": None if self.labels is None else content_digest(Path(self.labels)),
        }


def _fill(view: CalibrationView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write table `calibration`, which stage `evaluate` takes to correct the shares that it reports.

    Raises:
        InputError: When nothing is labelled, or the tables do not fit together.
    """
    from popalign_core.attributes.people_labels import read_labels
    from popalign_core.evaluation.confusion import asked_classes, calibrate, said_classes
    from tasks.common.image_tables import read_images

    table, images = inputs.read_table("prompts", "prompts"), read_images(inputs.store, inputs["sample"])
    if view.labels is None:
        truth = asked_classes(table, images, view.axes)
    else:
        truth = said_classes(read_labels(Path(view.labels)), table, images, view.axes)
    read = inputs.read_table("attributes", "attributes")
    build.write_table("calibration", calibrate(truth, read, view.axes, view.evaluation))
    on_progress(1, 1)


calibrate_classifier = Stage("calibration", "1", CalibrationView.of, _fill, inputs=("prompts", "sample", "attributes"))
