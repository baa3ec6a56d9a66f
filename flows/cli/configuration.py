"""The commands that print and write configurations. Everything heavy is imported inside them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.terminal.arguments import Config, Preset, Settings, filled_path
from popalign_core.errors import InputError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show_config(
    preset: Preset = None, config: Config = None, settings: Settings = None, as_json: AsJson = False
) -> None:
    """Print the resolved configuration, as TOML or JSON; `--config` reads both."""
    import json

    from flows.terminal.options import build_config
    from popalign_core.config.toml_text import to_toml

    pipeline, _ = build_config(preset, config, settings or [], None)
    document = pipeline.model_dump(mode="json", exclude_none=True)
    typer.echo(json.dumps(document, indent=1) if as_json else to_toml(document), nl=as_json)


def write_config(
    path: Annotated[Path, typer.Argument(parser=filled_path, metavar="FILE", help="TOML file to write.")] = Path(
        "popalign.toml"
    ),
    preset: Preset = None,
    settings: Settings = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented configuration file to edit. It starts from a preset; --set fills in fields."""
    from flows.terminal.options import DEFAULT_PRESET, RUNTIME_PREFIX, build_config, put_setting
    from popalign_core.config.toml_text import commented_toml

    preset = preset or DEFAULT_PRESET
    changes: dict[str, Any] = {}
    for setting in settings or []:
        if not setting.strip().startswith(RUNTIME_PREFIX):  # of the machine, not of the file
            put_setting(changes, setting)
    pipeline, _ = build_config(preset, None, settings or [], None)
    if path.exists() and not force:
        raise InputError(f"{path} already exists; choose another file, or pass --force to overwrite it")
    path.write_text(commented_toml(preset, pipeline, changes), encoding="utf-8")
    typer.echo(f"{path} starts from preset {preset}; edit it, then run `popalign plan --config {path}`")
