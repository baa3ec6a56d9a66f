"""Options that the study commands share, and opening the database."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from popalign_core.errors import ConfigError, InputError
from storage.reviews.passwords import hide_password

if TYPE_CHECKING:
    from storage.reviews.votes import ReviewDatabase

DATABASE_VARIABLE = "POPALIGN_REVIEW_DATABASE"
Database = Annotated[
    str | None,
    typer.Option(
        envvar=DATABASE_VARIABLE,
        help="SQLAlchemy URL, such as postgresql://user@host/name; default: ROOT/reviews.sqlite. A password in it is "
        "visible to other users of this machine; prefer the variable, or PGPASSWORD.",
    ),
]
Root = Annotated[str | None, typer.Option(help="Store: a folder or any fsspec URL; default: artifacts.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")]
Url = Annotated[str | None, typer.Option(help="Public address of the app; default: http://127.0.0.1:8765.")]


def open_database(database: str | None, root: str | None, *, create: bool = False) -> "ReviewDatabase":
    """The review database that the options name.

    Raises:
        StoreError: When it cannot be opened; and where a file is not to be made, when there is none.
    """
    from storage.reviews.votes import ReviewDatabase

    return ReviewDatabase(database_url(database, root), create=create)


def links_command(name: str, n_new: int | str, database: str | None, root: str | None) -> str:
    """The command that invites raters, to be copied: to the same database, whose password it does not show."""
    words = ["popalign", "study", "links", name, "--new", str(n_new)]
    words += ["--root", root] if root else []
    if database and database != os.environ.get(DATABASE_VARIABLE):  # what the variable says, it goes on to say
        words += ["--database", hide_password(database)]
    return shlex.join(words)


def database_url(database: str | None, root: str | None) -> str:
    """Its URL.

    Raises:
        ConfigError: When the store is elsewhere and no database is named.
    """
    from flows.terminal.options import DEFAULT_ROOT

    root = root or DEFAULT_ROOT
    if database is None and "://" in root:
        raise ConfigError(
            f"votes cannot be kept in {root}; give a database with --database, such as sqlite:///x.sqlite"
        )
    return database or f"sqlite:///{(Path(root) / 'reviews.sqlite').absolute()}"


def choose_token(token: str | None, file: Path | None) -> str | None:
    """A token that a user gave by itself, or as the first line of a file, which then counts.

    Raises:
        InputError: When the file cannot be read.
    """
    return token if file is None else (read_text(file).splitlines() or [""])[0].strip()


def read_text(path: Path) -> str:
    """A text that a user wrote.

    Raises:
        InputError: When it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a Markdown file in UTF-8") from error
