"""Stage `evaluate`: the metrics table of one system, from statistics that other stages have read off its images."""

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.stage import Progress, Request, no_progress, produce

STAGE = "evaluate"
VERSION = "1"


def request(
    config: PipelineConfig,
    *,
    prompts: ArtifactRef,
    sample: ArtifactRef,
    attributes: ArtifactRef,
    scores: ArtifactRef,
    system: str,
) -> Request:
    """What the key depends on; the targets of the axes enter, and the system's name, which stands in the table."""
    payload = {
        "system": system,
        "evaluation": config.evaluation.model_dump(mode="json"),
        "axes": [axis.model_dump(mode="json", exclude={"words"}) for axis in config.axes],
    }
    inputs = {"prompts": prompts.key, "sample": sample.key, "attributes": attributes.key, "scores": scores.key}
    return Request(STAGE, VERSION, payload, inputs)


def evaluate_system(
    prompts: ArtifactRef,
    sample: ArtifactRef,
    attributes: ArtifactRef,
    scores: ArtifactRef,
    *,
    system: str,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish table `metrics`: one row a benchmark, metric and axis, with interval and floor.

    Raises:
        InputError: When the tables do not fit together, or no face was read.
    """

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        from popalign_core.evaluation.metrics import compute_metrics
        from tasks.tables import read_images

        metrics = compute_metrics(
            system,
            store.read_table(prompts, "prompts"),
            read_images(store, sample),
            store.read_table(attributes, "attributes"),
            store.read_table(scores, "scores"),
            config.axes,
            config.evaluation,
        )
        build.write_table("metrics", metrics)
        on_progress(1, 1)

    asked = request(config, prompts=prompts, sample=sample, attributes=attributes, scores=scores, system=system)
    return produce(asked, runtime, fill)
