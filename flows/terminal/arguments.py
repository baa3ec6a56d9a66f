"""The options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer


def _not_empty(value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise typer.BadParameter("is empty; is its variable set?")
    return value


def filled_path(text: str) -> Path:
    """A path that a user names: nothing, as of a variable that is not set, would be the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("a path is empty; is its variable set? '.' is the current folder")
    return Path(text)


def path_option(words: str) -> Any:
    """An option that takes a path; `words` are its help."""
    return typer.Option(parser=filled_path, metavar="PATH", help=words)


Preset = Annotated[str | None, typer.Option(help="Named configuration; default: portraits.")]
Config = Annotated[
    Path | None,
    path_option("TOML file (`popalign init` writes one), or .json file as printed by a report."),
]
Root = Annotated[
    str | None,
    typer.Option(help="Store: a folder or any fsspec URL; default: artifacts.", callback=_not_empty),
]
Name = Annotated[
    str | None,
    typer.Option(help="Folder under runs/; default: preset or file name, with a hash after --set."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field; repeatable."),
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace a run of another configuration under the same name.")]
Force = Annotated[bool, typer.Option("--force", help="Recompute even if cached; the old version is kept.")]
