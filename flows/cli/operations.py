"""`popalign deploy`: flows on a Prefect server."""

from typing import Annotated

import typer

from popalign_core.errors import ConfigError


def deploy(
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the server to answer.")] = 120,
) -> None:
    """Set up pool, deployments and an automation on the server at PREFECT_API_URL; again brings them up to date."""
    from flows.deployment import POOL, make_deployments, wait_for_server
    from tasks.workers.prefect_server import server_url

    if not server_url():
        raise ConfigError(
            "popalign deploy needs a server; start one with `prefect server start`, and set PREFECT_API_URL, for "
            "example http://127.0.0.1:4200/api"
        )
    wait_for_server(wait)
    make_deployments(lambda made: typer.echo(f"made: {made}"))
    typer.echo(f"Start a worker in the folder of the store: prefect worker start --pool {POOL}")
