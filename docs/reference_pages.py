"""Writes the two generated reference pages: the configuration's fields and the command line's help.

Run it after a change of either; `tests/test_docs.py` compares the pages with what it would write.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this checkout's packages, whatever is installed

from flows.cli.app import app  # noqa: E402
from popalign_core.config import PipelineConfig, RuntimeConfig  # noqa: E402
from popalign_core.config.review import STUDIES  # noqa: E402

_WIDTH = 100
_LONGEST_DEFAULT = 60
_NOTE = "<!-- Written by docs/reference_pages.py; edit the source instead. -->\n"
_BOUNDS = (("ge", "≥ "), ("gt", "> "), ("le", "≤ "), ("lt", "< "), ("multiple_of", "multiple of "))

_CONFIGURATION = """# Configuration reference

A configuration is a TOML file with the tables below. `preset = "NAME"` at the top starts from a preset; the file then
needs only what differs. Unknown fields are refused. `--set table.field=VALUE` overrides one field on the command line.
[Custom axes, classifiers and prompts](../custom.md) shows the tables in use; `popalign init` writes a commented file.

Everything except `[runtime]` changes results and is part of the artifact keys.
"""
_RUNTIME = """
## `runtime` {#runtime}

Settings of the machine. They never change a key, and results only up to rounding. They are not part of the
configuration file: set them with `--set runtime.FIELD=VALUE`.
"""
_STUDIES = """
## Studies {#studies}

`popalign study create`, `curate` and `label` take these fields with `--set FIELD=VALUE`.
"""
_COMMANDS = """# Command reference

This page is the output of `--help`. Exit codes are explained under [Troubleshooting](../troubleshooting.md#exit-codes).
"""


def configuration_page() -> str:
    """Every field of the configuration, as Markdown."""
    parts = [_NOTE + _CONFIGURATION]
    parts += _model_section("", PipelineConfig, "##")
    parts += [_RUNTIME, _table("runtime", RuntimeConfig), _STUDIES]
    for name, model in STUDIES.items():
        parts.append(f"### `{name}` {{#study-{name}}}\n\n{_summary(model)}\n")
        parts.append(_table("", model, is_linked=False))
    return "\n".join(parts).rstrip() + "\n"


def commands_page() -> str:
    """The help of every command, as Markdown."""
    parts = [_NOTE + _COMMANDS]
    for command, context in _commands(typer.main.get_command(app), "popalign"):
        name = context.command_path
        lines = [line.rstrip() for line in command.get_help(context).strip().splitlines()]
        shown = "\n".join(lines)
        parts.append(f"## `{name}` {{#{name.replace(' ', '-')}}}\n\n```text\n{shown}\n```\n")
    return "\n".join(parts)


def _model_section(name: str, model: type[BaseModel], level: str) -> Iterator[str]:
    if name:
        yield f"{level} `{name}` {{#{_anchor(name)}}}\n\n{_summary(model)}\n"
    yield _table(name, model)
    for field, info in model.model_fields.items():
        where = f"{name}.{field}" if name else field
        models = _inner_models(info.annotation)
        for inner in models:
            label = f"{where}.NAME" if get_origin(_plain(info.annotation)) is dict else where
            kind = _kind(inner) if len(models) > 1 else ""
            below = "###" if level == "##" and name else level
            yield from _model_section(f"{label}{f' ({kind})' if kind else ''}", inner, below)


def _table(name: str, model: type[BaseModel], *, is_linked: bool = True) -> str:
    rows = ["| field | type | default | description |", "|---|---|---|---|"]
    for field, info in model.model_fields.items():
        inner = _inner_models(info.annotation)
        kind = _spell(info.annotation)
        if is_linked and len(inner) == 1:
            kind = f"[{kind}](#{_anchor(_label(name, field, info))})"
        bounds = _bounds(info)
        words = (info.description or "") + (f" ({bounds})" if bounds else "")
        cells = (f"`{field}`", kind, _default(info), words.replace("{}", "`{}`"))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _label(name: str, field: str, info: FieldInfo) -> str:
    where = f"{name}.{field}" if name else field
    return f"{where}.NAME" if get_origin(_plain(info.annotation)) is dict else where


def _anchor(name: str) -> str:
    kept = (letter if letter.isalnum() else "-" for letter in name.lower())
    return "-".join(part for part in "".join(kept).split("-") if part)


def _summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _kind(model: type[BaseModel]) -> str:
    info = model.model_fields.get("kind")
    return " or ".join(get_args(info.annotation)) if info is not None else ""


def _plain(annotation: Any) -> Any:
    """Without Annotated and None."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        left = [each for each in get_args(annotation) if each is not NoneType]
        return _plain(left[0]) if len(left) == 1 else annotation
    return annotation


def _inner_models(annotation: Any) -> list[type[BaseModel]]:
    annotation = _plain(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) if each is not Ellipsis for model in _inner_models(each)]


def _spell(annotation: Any) -> str:
    """A type in the words of TOML."""
    annotation = _plain(annotation)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in inner)
    if origin in (Union, UnionType):
        if all(isinstance(_plain(each), type) and issubclass(_plain(each), BaseModel) for each in inner):
            return "table"
        return " or ".join(_spell(each) for each in inner)
    if origin is tuple:
        return f"list of {_spell(inner[0])}" + ("" if inner[-1] is Ellipsis else f", {len(inner)} values")
    if origin is dict:
        return f"table of {_spell(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(annotation, "value")


def _default(info: FieldInfo) -> str:
    value = info.default
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ({}, (), []) or isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
        return ""
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    text = text or (repr(list(value)) if isinstance(value, tuple) else repr(value)).replace("'", '"')
    return f"`{text}`" if len(text) <= _LONGEST_DEFAULT else f"{len(value)} values"


def _bounds(info: FieldInfo) -> str:
    found = []
    for limit in info.metadata:
        for name, sign in _BOUNDS:
            value = getattr(limit, name, None)
            if value is not None:
                found.append(f"{sign}{value:g}")
    return ", ".join(found)


def _commands(command: Any, name: str, parent: Any = None) -> Iterator[tuple[Any, Any]]:
    """A command with its context, then the commands below it."""
    context = type(command).context_class(
        command, info_name=name, parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH
    )
    yield command, context
    for word, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, word, context)


PAGES = {"reference/configuration.md": configuration_page, "reference/commands.md": commands_page}


def main() -> None:
    """Write the pages that differ."""
    for name, make in PAGES.items():
        path, text = HERE / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
