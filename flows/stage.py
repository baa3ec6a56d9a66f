"""Flow `popalign-stage`: one stage rerun from cache."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.parameters import Document, PresetName, begin_flow, choose_config
from flows.plan.runs import run_stage
from flows.prefect_artifacts import call_as_task, manifest_markdown, saved_on_sigterm
from popalign_core.config import RuntimeConfig
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.prefect_tasks import artifact_key


@flow(name="popalign-stage", flow_run_name="stage {node}")
def popalign_stage(
    node: str = "evaluate:aligned",
    preset: PresetName = "portraits",
    settings: list[str] | None = None,
    config: Document | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),
    force: bool = False,
) -> ArtifactRef:
    """Run one node of the pipeline, and before it only what it needs and is not published.

    Args:
        node: Such as `train` or `evaluate:aligned`; `popalign plan` lists them.
        preset: Name of the configuration.
        settings: What differs from it, each as `training.beta=30`.
        config: A configuration as a file has it, in place of the preset.
        runtime: Store, device, batch size.
        force: Make a new version of a node that is published already.

    Returns:
        The node's artifact.
    """
    begin_flow()
    chosen, machine = choose_config(preset, settings, config, runtime)
    with saved_on_sigterm():
        ref = run_stage(node, chosen, machine, call=call_as_task, force=force)
    manifest = open_store(machine).manifest(ref)
    create_markdown_artifact(manifest_markdown(node, manifest), key=f"stage-{artifact_key(node)}", description=node)
    return ref
