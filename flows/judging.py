"""The commands that put systems side by side. Everything heavy is imported inside them."""

from typing import Annotated

import typer

from flows.arguments import Config, Preset, Root, Settings

Seeds = Annotated[
    int, typer.Option("--seeds", metavar="N", help="Replicates: other evaluation seeds, and other training seeds.")
]
Scale = Annotated[
    float, typer.Option(metavar="SHARE", help="Of the evaluation images, for a quick look; training stays as it is.")
]
Plan = Annotated[bool, typer.Option("--plan", help="Say what is in the store and what is left to do, and do nothing.")]


def compare(
    systems: Annotated[
        list[str],
        typer.Argument(metavar="SYSTEM...", help="Such as base sft dpo popalign cads; the first is the reference."),
    ],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    name: Annotated[str | None, typer.Option(help="Folder under runs/; preset or file with 'comparison'.")] = None,
    settings: Settings = None,
    n_seeds: Seeds = 1,
    scale: Scale = 1.0,
    plan: Plan = False,
) -> None:
    """Measure systems side by side, on the same prompts and seeds; what is in the store is not run again."""
    from flows.comparison import compare_systems, line_up
    from flows.graph import call_directly
    from flows.options import build_config, run_name
    from flows.progress import console_progress
    from flows.tables import plan_lines, systems_lines
    from tasks.stage import open_store

    pipeline, runtime = build_config(preset, config, settings or [], root)
    name = run_name(preset, config, name or f"{run_name(preset, config, None)}-comparison")
    if plan:
        lined = line_up(systems, pipeline, runtime, n_seeds=n_seeds, scale=scale)
        _say(plan_lines(lined.plan(runtime)))
        return
    with console_progress() as progress:
        call = call_directly(progress)
        ref = compare_systems(systems, pipeline, runtime, name, call=call, n_seeds=n_seeds, scale=scale)
    metrics = open_store(runtime).read_table(ref, "metrics")
    _say(systems_lines(metrics.to_dict("records"), list(metrics["system"].unique())))
    typer.echo(f"\nTables: {runtime.root.rstrip('/')}/runs/{name}/metrics.csv and comparison.csv")


def _say(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)
