"""The options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer


def _not_empty(value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise typer.BadParameter("is empty: is the variable set that it comes from?")
    return value


def filled_path(text: str) -> Path:
    """A path that a user names: nothing, as of a variable that is not set, would be the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("a path is empty: is the variable set that it comes from? '.' is the current folder")
    return Path(text)


def path_option(words: str) -> Any:
    """An option that takes a path; `words` are its help."""
    return typer.Option(parser=filled_path, metavar="PATH", help=words)


Preset = Annotated[str | None, typer.Option(help="A named configuration; 'portraits' when nothing is given.")]
Config = Annotated[
    Path | None,
    path_option("A TOML file (`popalign init` writes one), or a .json file as printed by a report."),
]
Root = Annotated[
    str | None,
    typer.Option(help="Store: a folder or any fsspec URL; 'artifacts' when not given.", callback=_not_empty),
]
Name = Annotated[
    str | None,
    typer.Option(help="Folder under runs/; the preset's or the file's name when not given, with a hash after --set."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Lay a value over the configuration; repeat at will."),
]
Replace = Annotated[
    bool, typer.Option("--replace", help="Let this run take the place of another configuration's of that name.")
]
Force = Annotated[bool, typer.Option("--force", help="Make a new version although there is one; the old one stays.")]
