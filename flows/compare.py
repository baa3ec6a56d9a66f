"""Flow `popalign-compare`: systems side by side on the same prompts and seeds."""

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.plan.compare_systems import run_comparison
from flows.prefect_artifacts import call_as_task, chosen_config, report_description, report_url, results_markdown
from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.prefect_tasks import artifact_key
from tasks.publishing.finished_run import read_compared

TABLE_1 = ("base", "sft", "dpo", "popalign", "dpo+popalign", "cads", "dynamic-cfg")
"""The systems of the paper's Table 1."""


@flow(name="popalign-compare", flow_run_name="compare {name}")
def popalign_compare(
    systems: tuple[str, ...] = TABLE_1,
    preset: str = "portraits",
    config: PipelineConfig | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),
    name: str = "comparison",
    n_seeds: int = 1,
    scale: float = 1.0,
    replace: bool = False,
) -> ArtifactRef:
    """Measure systems and publish the comparison under `<root>/runs/<name>/`.

    Args:
        systems: Their names, the reference first.
        preset: Name of the configuration.
        config: A whole configuration, in place of the preset.
        runtime: Store, device, batch size.
        name: Of the run's folder.
        n_seeds: Replicates.
        scale: Share of the evaluation images, for a quick look.
        replace: Whether a finished run of another configuration, or of other systems, may give way.

    Returns:
        The comparison's artifact.
    """
    chosen = chosen_config(preset, config)
    ref = run_comparison(
        systems, chosen, runtime, name, call=call_as_task, n_seeds=n_seeds, scale=scale, replace=replace
    )
    key, results = artifact_key(name), read_compared(open_store(runtime), ref, chosen)
    create_markdown_artifact(results_markdown(results), key=f"comparison-{key}", description=", ".join(systems))
    create_link_artifact(
        report_url(runtime, name), key=f"report-{key}", link_text="Report", description=report_description(runtime)
    )
    return ref
