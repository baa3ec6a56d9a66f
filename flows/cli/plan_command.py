"""The command that says what a run would do, and what that costs. Everything heavy is imported inside it."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.configuration import AsJson
from flows.terminal.arguments import Config, Preset, Root, Settings

if TYPE_CHECKING:
    from popalign_core.config import PipelineConfig

_LOADED = time.perf_counter()
"""When the command began."""


def plan(
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    settings: Settings = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure the speed of this machine first, and remember it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show each stage's key, whether it is cached, and the time, disk and paid calls left."""
    from flows.plan.costs import Cost, estimate_costs
    from flows.plan.planning import plan_run as plan_nodes
    from flows.terminal.options import build_config
    from flows.terminal.terminal_tables import plan_json, plan_lines
    from popalign_core.errors import PopAlignError

    pipeline, runtime = build_config(preset, config, settings or [], root)
    try:
        planned = plan_nodes(pipeline, runtime)
    except PopAlignError:  # whoever has no weights yet asks what they would be for
        _show_whole_work(pipeline)
        raise
    started = time.perf_counter() - _LOADED  # a run has to plan too
    if measure:
        from flows.plan.trial import run_trial
        from flows.terminal.progress import console_progress

        with console_progress() as progress:
            layout = run_trial(pipeline, runtime, progress)
        if layout is not None:
            said = f"channels_last={str(layout.channels_last).lower()}, batches of {layout.batch_size}"
            typer.echo(f"sampling is fastest with {said}{', compiled' if layout.compile else ''}", err=True)
    costs = estimate_costs(planned, runtime)
    shown = costs and {"start": Cost(started), **costs}
    for line in [plan_json(planned, costs)] if as_json else plan_lines(planned, shown):
        typer.echo(line)


def _show_whole_work(pipeline: "PipelineConfig") -> None:
    from flows.plan.expected_work import expected_work
    from flows.plan.preflight import PIXEL_BYTES
    from flows.terminal.terminal_tables import whole_work_line
    from popalign_core.errors import PopAlignError

    with suppress(PopAlignError):  # of prompt lists: the plan has told it already
        n_images, n_steps = expected_work(pipeline)
        n_bytes = n_images * pipeline.sampling.width * pipeline.sampling.height * PIXEL_BYTES
        typer.echo(whole_work_line(n_images, n_steps, n_bytes))
