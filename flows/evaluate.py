"""Flow `popalign-evaluate`: evaluates new checkpoints, each once, for the leaderboard."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.plan.checkpoints import evaluate_checkpoints, find_checkpoints
from flows.prefect_artifacts import call_as_task, chosen_config, leaderboard_markdown
from popalign_core.config import PipelineConfig, RuntimeConfig
from tasks.publishing.leaderboard import read_leaderboard


@flow(name="popalign-evaluate")
def popalign_evaluate(
    watch: str | None = None,
    preset: str = "portraits",
    config: PipelineConfig | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),
) -> list[str]:
    """Evaluate new checkpoints and append them to `<root>/leaderboard.parquet`; do nothing when none is new.

    Args:
        watch: Folder with diffusers pipeline folders; without it, the trained models in the store.
        preset: Name of the configuration.
        config: A whole configuration, in place of the preset.
        runtime: Store, device, batch size.

    Returns:
        The names of the checkpoints evaluated now.
    """
    chosen = chosen_config(preset, config)
    rows = evaluate_checkpoints(find_checkpoints(watch, runtime), chosen, runtime, call=call_as_task)
    if rows.empty:
        return []
    create_markdown_artifact(
        leaderboard_markdown(read_leaderboard(runtime.root)), key="leaderboard", description="All checkpoints evaluated"
    )
    return list(dict.fromkeys(rows["checkpoint"]))
