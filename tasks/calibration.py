"""Stage `calibration`: the confusion matrix of the classifier, on identity-specific prompts or people's labels."""

from pathlib import Path

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.measuring import content_digest
from tasks.stage import Progress, Request, no_progress, produce

STAGE = "calibration"
VERSION = "1"


def request(
    config: PipelineConfig,
    *,
    prompts: ArtifactRef,
    sample: ArtifactRef,
    attributes: ArtifactRef,
    labels: str | None = None,
) -> Request:
    """What the key depends on: the readings, the classes, the bootstrap, and the labels by their content."""
    payload = {
        "axes": [axis.model_dump(mode="json", include={"name", "classes"}) for axis in config.identity_axes],
        "evaluation": config.evaluation.model_dump(mode="json", include={"n_bootstrap", "confidence", "seed"}),
        "labels": None if labels is None else content_digest(Path(labels)),
    }
    inputs = {"prompts": prompts.key, "sample": sample.key, "attributes": attributes.key}
    return Request(STAGE, VERSION, payload, inputs)


def calibrate_classifier(
    prompts: ArtifactRef,
    sample: ArtifactRef,
    attributes: ArtifactRef,
    *,
    labels: str | None = None,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish table `calibration`; `evaluate_system` takes it to correct the shares that it reports.

    Args:
        prompts: Artifact with all prompts.
        sample: Images, of identity-specific prompts at least unless there are labels.
        attributes: The readings of the classifier on these images.
        labels: Path of people's labels, CSV or Parquet with `image_id`, `axis` and `class`; None takes what each
            identity-specific prompt asks for.
        config: Of the pipeline.
        runtime: Store.
        on_progress: Told when it is done.

    Raises:
        InputError: When nothing is labelled, or the tables do not fit together.
        MissingWeightsError: When there is no file of labels.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        from popalign_core.attributes.people import read_labels
        from popalign_core.evaluation.calibration import asked_classes, calibrate, said_classes
        from tasks.tables import read_images

        table, images = store.read_table(prompts, "prompts"), read_images(store, sample)
        if labels is None:
            truth = asked_classes(table, images, config.identity_axes)
        else:
            truth = said_classes(read_labels(Path(labels)), table, images, config.identity_axes)
        read = store.read_table(attributes, "attributes")
        build.write_table("calibration", calibrate(truth, read, config.identity_axes, config.evaluation))
        on_progress(1, 1)

    asked = request(config, prompts=prompts, sample=sample, attributes=attributes, labels=labels)
    return produce(asked, runtime, fill)
