"""The commands that put systems side by side. Everything heavy is imported inside them."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.terminal.arguments import Config, Preset, Root, Settings
from popalign_core.errors import BarMissedError

if TYPE_CHECKING:
    from popalign_core.evaluation.gate import Judgement

Seeds = Annotated[
    int, typer.Option("--seeds", metavar="N", help="Replicates: other evaluation seeds, and other training seeds.")
]
Scale = Annotated[
    float, typer.Option(metavar="SHARE", help="Of the evaluation images, for a quick look; training stays as it is.")
]
Plan = Annotated[bool, typer.Option("--plan", help="Say what is in the store and what is left to do, and do nothing.")]


def _bar(help_text: str) -> Any:
    return typer.Option(metavar="[NAME=]BAR", help=help_text)


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
    from flows.plan.running import call_directly
    from flows.plan.systems_run import plan_systems, run_comparison
    from flows.terminal.options import build_config, run_name
    from flows.terminal.progress import console_progress
    from flows.terminal.terminal_tables import plan_lines, systems_lines
    from tasks.common.stage_object import open_store

    pipeline, runtime = build_config(preset, config, settings or [], root)
    name = run_name(preset, config, name or f"{run_name(preset, config, None)}-comparison")
    if plan:
        side_by_side = plan_systems(systems, pipeline, runtime, n_seeds=n_seeds, scale=scale)
        _say(plan_lines(side_by_side.planned))
        return
    with console_progress() as progress:
        call = call_directly(progress)
        ref = run_comparison(systems, pipeline, runtime, name, call=call, n_seeds=n_seeds, scale=scale)
    metrics = open_store(runtime).read_table(ref, "metrics")
    _say(systems_lines(metrics.to_dict("records"), list(metrics["system"].unique())))
    typer.echo(f"\nReport: {runtime.root.rstrip('/')}/runs/{name}/report.html")


def sweep(
    parameters: Annotated[
        list[str], typer.Argument(metavar="FIELD=VALUES...", help="As --set has them: training.beta=10,20,40.")
    ],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    name: Annotated[str | None, typer.Option(help="Folder under runs/; preset or file with 'sweep'.")] = None,
    settings: Settings = None,
    systems: Annotated[
        list[str] | None,
        typer.Option(
            "--system", help="What is varied; repeat at will. If not given base, or aligned to vary training."
        ),
    ] = None,
    n_seeds: Seeds = 1,
    scale: Scale = 1.0,
    grid: Annotated[bool, typer.Option("--grid", help="All combinations; otherwise one field at a time.")] = False,
    plan: Plan = False,
) -> None:
    """Measure what a parameter does to fairness and quality; guidance, beta, set size, any field. Draws the front."""
    from flows.plan.running import call_directly
    from flows.plan.sweep import plan_sweep, run_sweep
    from flows.terminal.options import build_config, parse_sweep, run_name
    from flows.terminal.progress import console_progress
    from flows.terminal.terminal_tables import plan_lines, point_lines
    from tasks.common.stage_object import open_store

    pipeline, runtime = build_config(preset, config, settings or [], root)
    name = run_name(preset, config, name or f"{run_name(preset, config, None)}-sweep")
    fields = parse_sweep(parameters)
    options: dict[str, Any] = {"systems": systems or (), "n_seeds": n_seeds, "scale": scale, "grid": grid}
    planned = plan_sweep(fields, pipeline, runtime, **options)
    if plan:
        _say(plan_lines(planned.systems.planned))
        return
    with console_progress() as progress:
        ref = run_sweep(planned, runtime, name, call=call_directly(progress))
    points, front = (open_store(runtime).read_table(ref, table).to_dict("records") for table in ("points", "front"))
    _say(point_lines(points, front))
    typer.echo(f"\nPages: {runtime.root.rstrip('/')}/runs/{name}/")


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A diffusers folder, 'portraits', or a run's name.")],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    settings: Settings = None,
    max_discrepancy: Annotated[
        list[str] | None, _bar("Pooled discrepancy, such as gender=0.2; 0.2 is every axis.")
    ] = None,
    max_per_prompt: Annotated[list[str] | None, _bar("Mean discrepancy of the prompts one by one.")] = None,
    min_recall: Annotated[list[str] | None, _bar("Recall of identities asked for, such as race=0.95 or 0.95.")] = None,
    max_no_face: Annotated[
        list[str] | None, _bar("Share of images without a usable face, such as neutral=0.05.")
    ] = None,
    min_clip: Annotated[
        list[str] | None, _bar("Mean CLIP score, such as generic=80; 80 is every kind of prompt.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail also where the bar lies inside the interval.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list in place of lines.")] = False,
) -> None:
    """Judge a model by bars, for use in CI: exits with 9 when an interval says that one is missed, or there is none."""
    from flows.plan.check import check_model
    from flows.plan.running import call_directly
    from flows.terminal.options import build_config
    from flows.terminal.progress import console_progress
    from flows.terminal.terminal_tables import judgement_lines, judgements_json
    from popalign_core.evaluation.gate import parse_bar

    asked = {
        "max-discrepancy": max_discrepancy,
        "max-per-prompt": max_per_prompt,
        "min-recall": min_recall,
        "max-no-face": max_no_face,
        "min-clip": min_clip,
    }
    bars = [parse_bar(kind, text) for kind, texts in asked.items() for text in texts or []]
    pipeline, runtime = build_config(preset, config, settings or [], root)
    with console_progress() as progress:
        judgements = check_model(model, bars, pipeline, runtime, call=call_directly(progress))
    _say([judgements_json(judgements)] if as_json else judgement_lines(judgements))
    failed = [judgement for judgement in judgements if not judgement.passes(strict=strict)]
    if failed:
        raise BarMissedError(f"{model} fails {len(failed)} of {len(judgements)} bars: {_named(failed)}")


def _say(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)


def _named(judgements: "list[Judgement]") -> str:
    return "; ".join(f"{judgement.bar} on {judgement.subject}" for judgement in judgements)
