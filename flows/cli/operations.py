"""`popalign deploy` and `popalign doctor`: what a machine and a server need."""

from typing import Annotated

import typer

from flows.terminal.arguments import Config, Preset, Root, Settings
from popalign_core.errors import ConfigError


def deploy(
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the server.")] = 120,
) -> None:
    """Create or update work pool, deployments and automation on the server at PREFECT_API_URL."""
    from flows.deployment import POOL, make_deployments, wait_for_server
    from tasks.workers.prefect_server import server_url

    if not server_url():
        raise ConfigError(
            "popalign deploy needs a server; start one with `prefect server start`, and set PREFECT_API_URL, for "
            "example http://127.0.0.1:4200/api"
        )
    typer.echo(f"waiting for {server_url()}, at most {wait:g} s", err=True)
    wait_for_server(wait)
    make_deployments(lambda made: typer.echo(f"made: {made}"))
    typer.echo(f"Start a worker in the folder of the store: prefect worker start --pool {POOL}")


def doctor(preset: Preset = None, config: Config = None, root: Root = None, settings: Settings = None) -> None:
    """Check packages, weights, device, store and server.

    With a preset or a configuration: check everything that its run needs.
    """
    from flows.cli.doctor import examine, examine_needs
    from flows.terminal.options import DEFAULT_ROOT, build_config

    is_asked = preset or config or settings
    findings = examine_needs(*build_config(preset, config, settings or [], root)) if is_asked else None
    worst = 0
    for finding in findings or examine(root or DEFAULT_ROOT):
        typer.echo(f"{'ok' if finding.is_there else 'missing':<8} {finding.subject:<38} {finding.detail}")
        worst = worst or finding.exit_code
    raise typer.Exit(worst)
