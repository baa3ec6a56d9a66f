"""Flow `popalign`: all stages, from prompts to the report."""

import base64

from prefect import flow
from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact

from flows.parameters import Document, PresetName, begin_flow, choose_config, choose_name, name_pipeline_run
from flows.plan.runs import run_pipeline
from flows.prefect_artifacts import call_as_task, report_description, report_url, results_markdown, saved_on_sigterm
from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.prefect_tasks import artifact_key
from tasks.publishing.finished_run import read_systems
from tasks.stages.image_grid import draw_grid, read_pairs


@flow(name="popalign", flow_run_name=name_pipeline_run)
def popalign(
    preset: PresetName = "portraits",
    settings: list[str] | None = None,
    config: Document | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),
    name: str | None = None,
    replace: bool = False,
) -> dict[str, ArtifactRef]:
    """Take a base model through all stages and publish the run under `<root>/runs/<name>/`.

    Args:
        preset: Name of the configuration.
        settings: What differs from it, each as `training.beta=30`; `runtime.` fields too.
        config: A configuration as a file has it, in place of the preset.
        runtime: Store, device, batch size.
        name: Of the run's folder; without it the preset's, with a hash of what differs.
        replace: Whether a finished run of another configuration may give way; the same one again always may run.

    Returns:
        Each node's artifact.
    """
    begin_flow()
    chosen, machine = choose_config(preset, settings, config, runtime)
    name = choose_name(preset, settings, config, name)
    with saved_on_sigterm():
        refs = run_pipeline(chosen, machine, name, call=call_as_task, replace=replace)
    _show(refs, chosen, machine, name)
    return refs


def _show(refs: dict[str, ArtifactRef], config: PipelineConfig, runtime: RuntimeConfig, name: str) -> None:
    """Publish the verdict with the metrics, a before/after grid and a link to the report with the flow run."""
    store = open_store(runtime)
    create_markdown_artifact(
        results_markdown(read_systems(store, refs, config)),
        key=f"metrics-{artifact_key(name)}",
        description="Base and aligned",
    )
    prompts = store.read_table(refs["benchmarks"], "prompts")
    pairs = read_pairs(store, prompts, refs["sample-eval:base"], refs["sample-eval:aligned"], {"neutral": 6})
    create_image_artifact(
        f"data:image/png;base64,{base64.b64encode(draw_grid(pairs)).decode()}",
        key=f"grid-{artifact_key(name)}",
        description="Same prompts and seeds: base left, aligned right",
    )
    create_link_artifact(
        report_url(runtime, name),
        key=f"report-{artifact_key(name)}",
        link_text="Report",
        description=report_description(runtime),
    )
