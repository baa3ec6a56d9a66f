"""The commands that put systems side by side. Everything heavy is imported inside them."""

from typing import Annotated, Any

import typer

from flows.terminal.arguments import Config, Preset, Replace, Root, Settings
from popalign_core.errors import ThresholdMissedError

Seeds = Annotated[
    int,
    typer.Option("--seeds", metavar="N", help="Number of replicates, each with its own evaluation and training seeds."),
]
Scale = Annotated[
    float,
    typer.Option(
        metavar="SHARE", help="Share of the evaluation images to sample, for a quick look. Training does not change."
    ),
]
Plan = Annotated[bool, typer.Option("--plan", help="Show what is cached and what is left to do, and run nothing.")]


def _threshold(help_text: str) -> Any:
    return typer.Option(metavar="[NAME=]VALUE", help=help_text)


def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="SYSTEM...", help="Systems, such as base sft dpo popalign cads. The first is the reference."
        ),
    ],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    name: Annotated[
        str | None, typer.Option(help="Folder under runs/; default: preset or file name, with '-comparison'.")
    ] = None,
    settings: Settings = None,
    n_seeds: Seeds = 1,
    scale: Scale = 1.0,
    plan: Plan = False,
    replace: Replace = False,
) -> None:
    """Compare systems on the same prompts and seeds. Cached stages are skipped."""
    from flows.plan.compare_systems import plan_systems, run_comparison
    from flows.plan.costs import estimate_costs
    from flows.plan.execution import call_directly
    from flows.terminal.options import build_config, run_name
    from flows.terminal.progress import console_progress
    from flows.terminal.terminal_tables import caveat_lines, plan_lines, systems_lines
    from tasks.common.stage_object import open_store

    pipeline, runtime = build_config(preset, config, settings or [], root)
    name = run_name(preset, config, name, settings, "-comparison")
    if plan:
        side_by_side = plan_systems(systems, pipeline, runtime, n_seeds=n_seeds, scale=scale)
        _say(plan_lines(side_by_side.planned, estimate_costs(side_by_side.planned, runtime)))
        return
    with console_progress() as progress:
        call = call_directly(progress)
        options: dict[str, Any] = {"n_seeds": n_seeds, "scale": scale, "replace": replace}
        ref = run_comparison(systems, pipeline, runtime, name, call=call, **options)
    metrics = open_store(runtime).read_table(ref, "metrics")
    rows = metrics.to_dict("records")
    _say([*systems_lines(rows, list(metrics["system"].unique())), *caveat_lines(rows)])
    typer.echo(f"\nReport: {runtime.root.rstrip('/')}/runs/{name}/report.html")


def sweep(
    parameters: Annotated[
        list[str],
        typer.Argument(metavar="FIELD=VALUES...", help="Fields and values, as for --set: training.beta=10,20,40."),
    ],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    name: Annotated[
        str | None, typer.Option(help="Folder under runs/; default: preset or file name, with '-sweep'.")
    ] = None,
    settings: Settings = None,
    systems: Annotated[
        list[str] | None,
        typer.Option("--system", help="System to vary; repeatable. Default: base, or aligned for training parameters."),
    ] = None,
    n_seeds: Seeds = 1,
    scale: Scale = 1.0,
    grid: Annotated[bool, typer.Option("--grid", help="Run all combinations; default: one field at a time.")] = False,
    plan: Plan = False,
    replace: Replace = False,
) -> None:
    """Measure the effect of any parameter on fairness and quality, and plot the Pareto front."""
    from flows.plan.costs import estimate_costs
    from flows.plan.execution import call_directly
    from flows.plan.sweep import plan_sweep, run_sweep
    from flows.terminal.options import build_config, parse_sweep, run_name
    from flows.terminal.progress import console_progress
    from flows.terminal.terminal_tables import caveat_lines, plan_lines, point_lines
    from tasks.common.stage_object import open_store

    pipeline, runtime = build_config(preset, config, settings or [], root)
    name = run_name(preset, config, name, settings, "-sweep")
    fields = parse_sweep(parameters)
    options: dict[str, Any] = {"systems": systems or (), "n_seeds": n_seeds, "scale": scale, "grid": grid}
    planned = plan_sweep(fields, pipeline, runtime, **options)
    if plan:
        _say(plan_lines(planned.systems.planned, estimate_costs(planned.systems.planned, runtime)))
        return
    with console_progress() as progress:
        ref = run_sweep(planned, runtime, name, call=call_directly(progress), replace=replace)
    points, front = (open_store(runtime).read_table(ref, table).to_dict("records") for table in ("points", "front"))
    _say([*point_lines(points, front), *caveat_lines(points)])
    typer.echo(f"\nPages: {runtime.root.rstrip('/')}/runs/{name}/")


def check(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A diffusers folder, a .safetensors file, 'portraits', or the name of a run."
        ),
    ],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    settings: Settings = None,
    max_discrepancy: Annotated[
        list[str] | None, _threshold("Pooled discrepancy, such as gender=0.2; without a name: every axis.")
    ] = None,
    max_per_prompt: Annotated[list[str] | None, _threshold("Mean discrepancy per prompt.")] = None,
    min_recall: Annotated[
        list[str] | None, _threshold("Recall of the requested identities, such as race=0.95 or 0.95.")
    ] = None,
    max_no_face: Annotated[
        list[str] | None, _threshold("Share of images without a usable face, such as neutral=0.05.")
    ] = None,
    max_no_face_gap: Annotated[
        list[str] | None,
        _threshold("Largest difference between classes in the share without a usable face, such as gender=0.1."),
    ] = None,
    max_quality_gap: Annotated[
        list[str] | None,
        _threshold("Largest difference between classes in a mean score, such as clip_score=2; 2: all but diversity."),
    ] = None,
    min_clip: Annotated[
        list[str] | None, _threshold("Mean CLIP score, such as generic=80; without a name: every kind of prompt.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a threshold lies inside its interval.")] = False,
    lenient: Annotated[bool, typer.Option("--lenient", help="Pass even if no threshold is proven.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Check a model against thresholds, for CI. Exits with 9 if one is missed or none is proven."""
    from flows.plan.check import check_model
    from flows.plan.execution import call_directly
    from flows.terminal.options import build_config
    from flows.terminal.progress import console_progress
    from flows.terminal.terminal_tables import caveat_lines, outcome_json, outcome_lines
    from popalign_core.evaluation.thresholds import GateOutcome, parse_threshold

    asked = {
        "max-discrepancy": max_discrepancy,
        "max-per-prompt": max_per_prompt,
        "min-recall": min_recall,
        "max-no-face": max_no_face,
        "max-no-face-gap": max_no_face_gap,
        "max-quality-gap": max_quality_gap,
        "min-clip": min_clip,
    }
    thresholds = [parse_threshold(kind, text) for kind, texts in asked.items() for text in texts or []]
    pipeline, runtime = build_config(preset, config, settings or [], root)
    with console_progress() as progress:
        judgements, rows = check_model(model, thresholds, pipeline, runtime, call=call_directly(progress))
    outcome = GateOutcome(tuple(judgements), strict, lenient)
    _say([outcome_json(outcome)] if as_json else outcome_lines(outcome))
    for line in caveat_lines(rows.to_dict("records")):
        typer.echo(line, err=True)  # the output itself is for programs, and ends with the count
    if outcome.verdict == "failed":
        named = "; ".join(f"{each.threshold} on {each.subject}" for each in outcome.failed)
        raise ThresholdMissedError(f"{model} fails {len(outcome.failed)} of {len(judgements)} thresholds: {named}")
    if outcome.verdict == "unproven":
        raise ThresholdMissedError(
            f"{model} is not proven to meet any of the {len(judgements)} thresholds: each lies inside its interval; "
            "evaluate more images, or pass --lenient"
        )


def _say(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)
