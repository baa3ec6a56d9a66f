"""`popalign serve`. Everything heavy is imported inside the command."""

from pathlib import Path
from typing import Annotated

import typer

from flows.review.study_arguments import choose_token
from flows.terminal.arguments import Root, path_option
from popalign_core.errors import ConfigError

PAGES_PORT = 8710
"""Also in the default of `runtime.pages_url`."""


def serve_pages(
    root: Root = None,
    host: Annotated[str, typer.Option(help="Address to listen on; anything but this machine needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = PAGES_PORT,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="POPALIGN_SERVE_TOKEN",
            help="Password for readers, 16 characters or more. It is visible to other users of this machine on the "
            "command line; prefer the variable or --token-file.",
        ),
    ] = None,
    token_file: Annotated[Path | None, path_option("File whose first line is the token.")] = None,
) -> None:
    """Show runs, reports and the leaderboard of a store in a browser, read-only."""
    from flows.pages.pages_app import make_pages_app
    from flows.review.server_settings import ReviewSettings
    from flows.review.serving import listen, serve_app
    from flows.terminal.options import DEFAULT_ROOT
    from storage.readable_runs import ReadableRuns

    token = choose_token(token, token_file)
    if token is not None and not token.isascii():
        raise ConfigError(
            "the token has characters other than ASCII, which browsers send in several ways; give another"
        )
    settings = ReviewSettings(host=host, port=port, token=token)
    pages = make_pages_app(ReadableRuns(root or DEFAULT_ROOT), settings)
    with listen(settings) as listening:
        typer.echo(f"Runs: {settings.base_url}/ (Ctrl-C stops)", err=True)
        serve_app(pages, settings, listening)
