"""Flow `popalign-compare`: systems side by side on the same prompts and seeds."""

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.parameters import Document, PresetName, begin_flow, choose_config
from flows.plan.compare_systems import run_comparison
from flows.prefect_artifacts import call_as_task, report_description, report_url, results_markdown, saved_on_sigterm
from popalign_core.config import RuntimeConfig
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.prefect_tasks import artifact_key
from tasks.publishing.finished_run import read_compared

TABLE_1 = ("base", "sft", "dpo", "popalign", "dpo+popalign", "cads", "dynamic-cfg")
"""The systems of the paper's Table 1."""


@flow(name="popalign-compare", flow_run_name="compare {name}")
def popalign_compare(
    systems: tuple[str, ...] = TABLE_1,
    preset: PresetName = "portraits",
    settings: list[str] | None = None,
    config: Document | None = None,
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
        settings: What differs from it, each as `training.beta=30`.
        config: A configuration as a file has it, in place of the preset.
        runtime: Store, device, batch size.
        name: Of the run's folder.
        n_seeds: Replicates.
        scale: Share of the evaluation images, for a quick look.
        replace: Whether a finished run of another configuration, or of other systems, may give way.

    Returns:
        The comparison's artifact.
    """
    begin_flow()
    chosen, machine = choose_config(preset, settings, config, runtime)
    with saved_on_sigterm():
        ref = run_comparison(
            systems, chosen, machine, name, call=call_as_task, n_seeds=n_seeds, scale=scale, replace=replace
        )
    key, results = artifact_key(name), read_compared(open_store(machine), ref, chosen)
    create_markdown_artifact(results_markdown(results), key=f"comparison-{key}", description=", ".join(systems))
    create_link_artifact(
        report_url(machine, name), key=f"report-{key}", link_text="Report", description=report_description(machine)
    )
    return ref
