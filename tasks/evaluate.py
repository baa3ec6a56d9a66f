"""Stage `evaluate`: the metrics table of one system, from statistics that other stages have read off its images."""

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.stage import Progress, Request, no_progress, produce

STAGE = "evaluate"
VERSION = "5"


def request(
    config: PipelineConfig,
    *,
    prompts: ArtifactRef,
    sample: ArtifactRef,
    attributes: ArtifactRef,
    scores: ArtifactRef,
    system: str,
    calibration: ArtifactRef | None = None,
) -> Request:
    """What the key depends on; the targets of the axes enter, and the system's name, which stands in the table."""
    payload = {
        "system": system,
        # Who scores is in the key of the scores, by content; a second classifier reads for comparisons alone.
        "evaluation": config.evaluation.model_dump(mode="json", exclude={"scorers", "second_classifier"}),
        "axes": [axis.model_dump(mode="json", exclude={"words"}) for axis in config.axes],
    }
    inputs = {"prompts": prompts.key, "sample": sample.key, "attributes": attributes.key, "scores": scores.key}
    if calibration is not None:
        inputs["calibration"] = calibration.key
    return Request(STAGE, VERSION, payload, inputs)


def evaluate_system(
    prompts: ArtifactRef,
    sample: ArtifactRef,
    attributes: ArtifactRef,
    scores: ArtifactRef,
    *,
    system: str,
    calibration: ArtifactRef | None = None,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish table `metrics`: one row a benchmark, metric and axis, with interval and floor.

    With a `calibration` of the same classifier there are rows of corrected shares and discrepancies besides.

    Raises:
        InputError: When the tables do not fit together, or the calibration is of another classifier.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        import pandas as pd

        from popalign_core.evaluation.metrics import compute_metrics
        from popalign_core.evaluation.quality.sets import unmeasured_rows
        from tasks.scores import read_unmeasured
        from tasks.tables import read_images

        table, images = store.read_table(prompts, "prompts"), read_images(store, sample)
        metrics = compute_metrics(
            system,
            table,
            images,
            store.read_table(attributes, "attributes"),
            store.read_table(scores, "scores"),
            config.axes,
            config.evaluation,
            None if calibration is None else store.read_table(calibration, "calibration"),
            config.benchmark_axes,
        )
        rest = unmeasured_rows(system, table, images, read_unmeasured(store, scores))
        build.write_table("metrics", pd.concat([metrics, rest], ignore_index=True) if len(rest) else metrics)
        on_progress(1, 1)

    inputs = {"prompts": prompts, "sample": sample, "attributes": attributes, "scores": scores}
    return produce(request(config, **inputs, system=system, calibration=calibration), runtime, fill)
