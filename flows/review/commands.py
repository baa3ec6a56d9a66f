"""`popalign study ...` and `popalign review`. Everything heavy is imported inside the commands."""

from pathlib import Path
from typing import Annotated

import typer

from flows.review import create_commands
from flows.review.study_arguments import (
    Database,
    Name,
    Root,
    Url,
    choose_token,
    database_url,
    links_command,
    open_database,
    read_text,
)
from flows.terminal.arguments import filled_path, path_option

studies = typer.Typer(
    no_args_is_help=True, help="Studies in which people judge, label or curate images.", rich_markup_mode=None
)
for command in (create_commands.create, create_commands.curate, create_commands.label):
    studies.command()(command)


@studies.command("list")
def list_studies(root: Root = None, database: Database = None) -> None:
    """List studies with their progress."""
    from flows.review.study_text import about

    opened = open_database(database, root)
    for study in opened.studies():
        raters = opened.raters(study.name)
        done, asked = sum(n for _, n, _ in raters), sum(n for _, _, n in raters)
        typer.echo(f"{study.name:<24} {about(study):<32} {len(raters):>3} rater(s) {done:>6} of {asked} answers")


@studies.command()
def links(
    name: Name,
    new: Annotated[int, typer.Option("--new", metavar="N", min=0, help="Invite N more raters first.")] = 0,
    url: Url = None,
    root: Root = None,
    database: Database = None,
) -> None:
    """Print one line per rater, tab-separated: number, link, progress, completion code."""
    from flows.review.server_settings import ReviewSettings
    from flows.review.sessions import invitation
    from tasks.studies.study_records import completion_code, invite

    opened = open_database(database, root)
    study = opened.study(name)
    for _ in range(new):
        invite(opened, study)
    base_url = (url or ReviewSettings().base_url).rstrip("/")
    for rater, n_done, n_all in opened.raters(name):
        state = "closed" if rater.is_closed else f"{n_done}/{n_all}"
        link, code = invitation(study, rater.rater_id, base_url), completion_code(study, rater.rater_id)
        typer.echo(f"{rater.number}\t{link}\t{state}\t{code}")


@studies.command()
def close(
    name: Name,
    rater: Annotated[int, typer.Argument(metavar="RATER", help="Number, as printed by `links`.")],
    root: Root = None,
    database: Database = None,
) -> None:
    """Close a rater; open questions go to raters invited later."""
    open_database(database, root).close_rater(name, rater)
    typer.echo(f"rater {rater} is closed; `{links_command(name, 1, database, root)}` invites another")


@studies.command()
def instructions(
    name: Name,
    file: Annotated[
        Path | None, typer.Argument(parser=filled_path, metavar="[FILE]", help="Markdown file with new instructions.")
    ] = None,
    root: Root = None,
    database: Database = None,
) -> None:
    """Print the instructions for raters, or change them before the first vote."""
    opened = open_database(database, root)
    if file is not None:
        opened.set_instructions(name, read_text(file))
    typer.echo(opened.study(name).instructions)


@studies.command()
def results(name: Name, root: Root = None, database: Database = None) -> None:
    """Print results: win rates, agreement and flagged raters; labels per class; distance of curated sets."""
    from flows.review.study_text import study_lines

    for line in study_lines(open_database(database, root), name):
        typer.echo(line)


@studies.command()
def report(
    name: Name,
    path: Annotated[
        Path | None,
        typer.Argument(
            parser=filled_path,
            metavar="[PATH]",
            help="HTML page to write; default: a section in the run's report.",
        ),
    ] = None,
    root: Root = None,
    database: Database = None,
) -> None:
    """Write the results as a self-contained page, or as a section of the run's report."""
    from flows.review.templating import markdown
    from flows.terminal.options import DEFAULT_ROOT
    from storage.store import Store
    from tasks.studies.study_results import add_to_report, write_page

    opened = open_database(database, root)
    if path is None:
        typer.echo(f"Section in {add_to_report(opened, Store(root or DEFAULT_ROOT), name)}")
        return
    write_page(opened, name, markdown(opened.study(name).instructions), path)
    typer.echo(f"Page: {path}")


@studies.command()
def export(
    name: Name,
    path: Annotated[
        Path, typer.Argument(parser=filled_path, metavar="PATH", help="File to write, ending in .parquet or .csv.")
    ],
    known_only: Annotated[
        bool,
        typer.Option(
            "--known-only",
            help="Labels: write classes that the run's configuration lacks as `cannot tell`, to compare with its "
            "classifier.",
        ),
    ] = False,
    root: Root = None,
    database: Database = None,
) -> None:
    """Write all answers, with pseudonyms for raters, as table `votes`, `labels` or `curated`."""
    from tasks.studies.study_results import export_study

    n_rows = export_study(open_database(database, root), name, path, known_only=known_only)
    typer.echo(f"{n_rows} row(s) are in {path}")


@studies.command()
def publish(name: Name, root: Root = None, database: Database = None) -> None:
    """Publish the finished sets of a curation study for training; prints the command."""
    from flows.terminal.options import DEFAULT_ROOT
    from storage.store import Store
    from tasks.studies.curation import publish_curated

    ref = publish_curated(open_database(database, root), Store(root or DEFAULT_ROOT), name)
    typer.echo(f"{ref.key}\nTrain on it with --set preferences.strategy=human --set preferences.curated={ref.key}")


def review(
    host: Annotated[str, typer.Option(help="Address to listen on; anything but this machine needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="POPALIGN_REVIEW_TOKEN",
            help="Operator's password, 16 characters or more. It is visible to other users of this machine on the "
            "command line; prefer the variable or --token-file.",
        ),
    ] = None,
    token_file: Annotated[Path | None, path_option("File whose first line is the token.")] = None,
    url: Url = None,
    trusted_proxies: Annotated[
        list[str] | None,
        typer.Option("--trusted-proxy", help="Address of a proxy whose X-Forwarded-For is trusted; repeatable."),
    ] = None,
    root: Root = None,
    database: Database = None,
) -> None:
    """Serve the review app for raters and operators."""
    from flows.review.app import serve
    from flows.review.server_settings import ReviewSettings

    token = choose_token(token, token_file)
    settings = ReviewSettings(host=host, port=port, token=token, url=url, trusted_proxies=tuple(trusted_proxies or ()))
    typer.echo(f"Studies: {settings.base_url}/ (Ctrl-C stops; every answer is saved)", err=True)
    serve(database_url(database, root), settings)
