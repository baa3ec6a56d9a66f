"""`popalign study ...` and `popalign review`. Everything heavy is imported inside the commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from popalign_core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from popalign_core.config.review import StudyConfig
    from storage.votes import ReviewDatabase

studies = typer.Typer(no_args_is_help=True, help="Studies in which people judge.", rich_markup_mode=None)

Database = Annotated[
    str | None,
    typer.Option(help="SQLAlchemy URL, such as postgresql://user@host/name; ROOT/reviews.sqlite when not given."),
]
Root = Annotated[str | None, typer.Option(help="Store: a folder or any fsspec URL; 'artifacts' when not given.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the study.")]
Url = Annotated[str | None, typer.Option(help="How people reach the app; http://127.0.0.1:8765 when not given.")]


@studies.command()
def create(
    name: Name,
    systems: Annotated[tuple[str, str], typer.Argument(metavar="SYSTEM SYSTEM", help="Such as base aligned.")],
    run: Annotated[str, typer.Option(help="Folder under runs/ that has both: of a run or of a comparison.")],
    root: Root = None,
    database: Database = None,
    kind: Annotated[
        Literal["sets", "images"], typer.Option(help="Sets of 5 and three raters a pair, or single pictures and five.")
    ] = "sets",
    benchmark: Annotated[str, typer.Option(help="Whose evaluation prompts to use.")] = "neutral",
    instructions: Annotated[Path | None, typer.Option(help="A Markdown file; a shipped text when not given.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Such as n_raters=5, n_pairs=40, set_size=4, n_checks=6."),
    ] = None,
) -> None:
    """Make a study of what two systems drew for the same prompts and seeds."""
    from flows.options import DEFAULT_ROOT
    from storage.store import Store
    from tasks.studies import create_study, find_samples

    config = _build_config(kind, settings or [])
    text = None if instructions is None else _read_text(instructions)
    store = Store(root or DEFAULT_ROOT)
    found, samples = find_samples(store, run, systems)
    n_pairs = create_study(
        _open(database, root),
        store,
        _check_name(name),
        dict(zip(systems, samples, strict=True)),
        found,
        config=config,
        benchmark=benchmark,
        instructions=text,
    )
    typer.echo(f"{n_pairs} pair(s); now `popalign study links {name} --new N` invites raters")


@studies.command("list")
def list_studies(root: Root = None, database: Database = None) -> None:
    """All studies and how far they are."""
    opened = _open(database, root)
    for study in opened.studies():
        raters = opened.raters(study.name)
        done, asked = sum(n for _, n, _ in raters), sum(n for _, _, n in raters)
        systems = f"{study.system_a} and {study.system_b}"
        typer.echo(f"{study.name:<24} {systems:<32} {len(raters):>3} rater(s) {done:>6} of {asked} answers")


@studies.command()
def links(
    name: Name,
    new: Annotated[int, typer.Option("--new", metavar="N", min=0, help="Invite so many more raters first.")] = 0,
    url: Url = None,
    root: Root = None,
    database: Database = None,
) -> None:
    """Every rater's link and completion code, a line each, separated by tabs; answers are in the third column."""
    from flows.review.sessions import invitation
    from flows.review.settings import ReviewSettings
    from tasks.studies import completion_code, invite

    opened = _open(database, root)
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
    rater: Annotated[int, typer.Argument(metavar="RATER", help="Number, as `links` prints it.")],
    root: Root = None,
    database: Database = None,
) -> None:
    """End a rater's part; what is not answered goes to whoever is invited next."""
    _open(database, root).close_rater(name, rater)
    typer.echo(f"rater {rater} is closed; `popalign study links {name} --new 1` invites another")


@studies.command()
def instructions(
    name: Name,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Markdown to put in their place.")] = None,
    root: Root = None,
    database: Database = None,
) -> None:
    """Print what raters read, or change it before the first vote."""
    opened = _open(database, root)
    if file is not None:
        opened.set_instructions(name, _read_text(file))
    typer.echo(opened.study(name).instructions)


@studies.command()
def results(name: Name, root: Root = None, database: Database = None) -> None:
    """Win rates with intervals, agreement of the raters, and whom the checks flag."""
    from flows.review.lines import result_lines
    from tasks.studies import study_results

    opened = _open(database, root)
    for line in result_lines(opened.study(name), study_results(opened, name)):
        typer.echo(line)


@studies.command()
def export(
    name: Name,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Ends in .parquet or .csv.")],
    root: Root = None,
    database: Database = None,
) -> None:
    """Write all votes, raters under pseudonyms, as table `votes`."""
    from tasks.studies import export_votes

    typer.echo(f"{export_votes(_open(database, root), name, path)} vote(s) are in {path}")


def review(
    host: Annotated[str, typer.Option(help="Address to listen on; another than this machine's own needs --token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="To listen on.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(envvar="POPALIGN_REVIEW_TOKEN", help="What the operator logs in with: 16 characters or more."),
    ] = None,
    url: Url = None,
    root: Root = None,
    database: Database = None,
) -> None:
    """Serve the review app: raters judge by their links, the operator sees progress and results."""
    from flows.review.app import serve
    from flows.review.settings import ReviewSettings

    settings = ReviewSettings(host=host, port=port, token=token, url=url)
    typer.echo(f"Studies: {settings.base_url}/ (Ctrl-C ends it; every answer is kept)", err=True)
    serve(_database_url(database, root), settings)


def _open(database: str | None, root: str | None) -> "ReviewDatabase":
    from storage.votes import ReviewDatabase

    return ReviewDatabase(_database_url(database, root))


def _database_url(database: str | None, root: str | None) -> str:
    from flows.options import DEFAULT_ROOT

    root = root or DEFAULT_ROOT
    if database is None and "://" in root:
        raise ConfigError(
            f"votes cannot be kept in {root}; give a database with --database, such as sqlite:///x.sqlite"
        )
    return database or f"sqlite:///{(Path(root) / 'reviews.sqlite').absolute()}"


def _build_config(kind: str, settings: list[str]) -> "StudyConfig":
    from pydantic import ValidationError

    from flows.options import parse_setting
    from popalign_core.config.review import KINDS, StudyConfig

    values = KINDS[kind].model_dump() | dict(parse_setting(setting) for setting in settings)
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, item['loc'])) or 'study'}: {item['msg']}" for item in error.errors()]
        raise ConfigError("the study does not fit:\n" + "\n".join(problems)) from error


def _check_name(name: str) -> str:
    from storage.keys import check_name

    check_name("study", name)
    if len(name) > 64:
        raise ConfigError(f"the study's name has {len(name)} characters; give at most 64")
    return name


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a Markdown file in UTF-8") from error
