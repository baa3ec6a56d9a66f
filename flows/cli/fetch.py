"""The command that downloads: everything that a configuration needs, after it has shown what and asked."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.terminal.arguments import Config, Preset, Settings
from popalign_core.errors import ConfigError

if TYPE_CHECKING:
    from flows.plan.fetching import FetchPlan

_DECLINED = 130


def fetch(
    preset: Preset = None,
    config: Config = None,
    settings: Settings = None,
    what: Annotated[
        str | None,
        typer.Option(
            metavar="GROUPS",
            help="Comma-separated subset of model,denoiser,vae,lora,safety-checker,classifiers,scorers; default: all.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files, sizes and licenses, and download nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; accept the licenses shown.")] = False,
) -> None:
    """Download missing weights of a configuration. The same command resumes."""
    from flows.plan.fetching import check_room, fetch_jobs, parse_groups, plan_fetch
    from flows.plan.preflight import list_needs
    from flows.plan.steps import PIPELINE
    from flows.terminal.fetch_tables import fetch_lines
    from flows.terminal.options import build_config
    from flows.terminal.progress import console_progress

    groups = parse_groups(what)
    pipeline, runtime = build_config(preset, config, settings or [], None)
    plan = plan_fetch(list_needs(PIPELINE, pipeline, runtime), pipeline, groups)
    for line in fetch_lines(plan):
        typer.echo(line)
    if plan.jobs:
        check_room(plan.jobs)
    if plan.jobs and not dry_run:
        if not yes:
            _ask()
        with console_progress() as progress:
            fetch_jobs(plan.jobs, progress)
        typer.echo(f"{len(plan.jobs)} item(s) downloaded and verified")
    _say_left(plan)


def _ask() -> None:
    if not sys.stdin.isatty():
        raise ConfigError("nothing was downloaded: no terminal to ask on; pass --yes or --dry-run")
    if not typer.confirm("Download under these licenses?", default=False):
        typer.echo("nothing was downloaded", err=True)
        raise typer.Exit(_DECLINED)


def _say_left(plan: "FetchPlan") -> None:
    for problem in plan.left:
        typer.echo(f"not fetched: {problem}", err=True)
    if plan.left:
        raise typer.Exit(plan.left[0].exit_code)
