"""Flow `popalign-evaluate`: evaluates new checkpoints, each once, for the leaderboard."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.parameters import Document, PresetName, begin_flow, choose_config
from flows.plan.checkpoints import evaluate_checkpoints, find_checkpoints
from flows.prefect_artifacts import call_as_task, leaderboard_markdown
from popalign_core.config import RuntimeConfig
from tasks.publishing.leaderboard import read_leaderboard


@flow(name="popalign-evaluate", flow_run_name="evaluate with {preset}")
def popalign_evaluate(
    watch: str | None = None,
    preset: PresetName = "portraits",
    settings: list[str] | None = None,
    config: Document | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),
) -> list[str]:
    """Evaluate new checkpoints and append them to `<root>/leaderboard.parquet`; do nothing when none is new.

    Args:
        watch: Folder with diffusers folders and single files; without it, the trained models in the store.
        preset: Name of the configuration.
        settings: What differs from it, each as `evaluation.n_neutral=20`.
        config: A configuration as a file has it, in place of the preset.
        runtime: Store, device, batch size.

    Returns:
        The names of the checkpoints evaluated now.
    """
    begin_flow()
    chosen, machine = choose_config(preset, settings, config, runtime)
    found = find_checkpoints(watch, machine, chosen.model.config)
    rows = evaluate_checkpoints(found, chosen, machine, call=call_as_task)
    if rows.empty:
        return []
    create_markdown_artifact(
        leaderboard_markdown(read_leaderboard(machine.root)), key="leaderboard", description="All checkpoints evaluated"
    )
    return list(dict.fromkeys(rows["checkpoint"]))
