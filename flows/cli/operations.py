"""What a machine, a server and a store need: `popalign deploy`, `doctor`, `verify` and `gc`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.configuration import AsJson
from flows.terminal.arguments import Config, Preset, Root, Settings
from popalign_core.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from storage.store import Store


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


def doctor(
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Check packages, weights, device, store and server.

    With a preset or a configuration: check everything that its run needs.
    """
    from flows.cli.doctor import examine, examine_needs
    from flows.terminal.options import DEFAULT_ROOT, build_config

    is_asked = preset or config or settings
    findings = examine_needs(*build_config(preset, config, settings or [], root)) if is_asked else None
    worst, seen = 0, []
    for finding in findings or examine(root or DEFAULT_ROOT):
        seen.append({"is_there": finding.is_there, "subject": finding.subject, "detail": finding.detail})
        if not as_json:  # each as soon as it is known
            typer.echo(f"{'ok' if finding.is_there else 'missing':<8} {finding.subject:<38} {finding.detail}")
        worst = worst or finding.exit_code
    if as_json:
        typer.echo(json.dumps(seen, indent=1))
    raise typer.Exit(worst)


def verify(root: Root = None) -> None:
    """Check every artifact in the store against its checksums."""
    store = _open_store(root)
    problems = store.verify()
    for problem in problems:
        typer.echo(f"{problem.ref} {problem.file}: {problem.what}", err=True)
    if problems:
        raise StoreError(f"{len(problems)} problem(s) in {store.root}; delete the artifacts named and run again")
    typer.echo(f"{len(store.list_artifacts())} artifact(s) in {store.root} are intact")


def gc(
    root: Root = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be deleted, and delete nothing.")] = False,
) -> None:
    """Delete artifacts that no run refers to, and leftovers of killed runs."""
    from flows.terminal.terminal_tables import garbage_lines

    store = _open_store(root)
    if not dry_run:
        store.check_writable()
    for line in garbage_lines(store.collect_garbage(dry_run=dry_run)):
        typer.echo(line)


def _open_store(root: str | None) -> "Store":
    from flows.terminal.options import DEFAULT_ROOT
    from storage.store import Store

    return Store(root or DEFAULT_ROOT, create=False)
