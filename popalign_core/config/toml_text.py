"""Configurations as TOML: the resolved one, and a commented one to edit."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from popalign_core.config.pipeline import PipelineConfig

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WIDTH = 118
_SECTIONS = ("model", "prompts", "sampling", "attributes", "preferences", "training", "evaluation")
_HEAD = """# A configuration of PopAlign. It starts from the preset below; lines without a # in front differ from it.
# Remove the # to set a field. Every field: docs/reference/configuration.md
"""
_AXES = """# An axis is data: name, classes, words in a prompt, target distribution (default: uniform).
# Axes given here replace those of the preset. Shipped axes can be named: axes = ["gender", "race"]
"""


def to_toml(document: Mapping[str, Any]) -> str:
    """A document as TOML: plain values first, then a table for each mapping. None is left out."""
    return "\n".join(_tables("", document)).lstrip("\n") + "\n"


def commented_toml(preset: str, config: PipelineConfig, changes: Mapping[str, Any]) -> str:
    """A configuration to edit: what differs from a preset, and every other field in a comment with its description.

    Args:
        preset: Its name.
        config: What it resolves to, changes included.
        changes: Table -> field -> value that differs from the preset.
    """
    parts = [_HEAD + f"preset = {json.dumps(preset)}\n", _AXES + "".join(_axis_lines(config))]
    for section in _SECTIONS:
        given = changes.get(section, {})
        lines = _section_lines(getattr(config, section), given if isinstance(given, Mapping) else {})
        parts.append(f"[{section}]\n" + "".join(lines))
    apart = {name: value for name, value in changes.items() if name not in _SECTIONS}
    return "\n".join([*parts, *([to_toml(apart)] if apart else [])])


def _axis_lines(config: PipelineConfig) -> Iterator[str]:
    for axis in config.axes:
        given = axis.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        yield "#\n# [[axes]]\n" + "".join(f"# {_key(name)} = {_value(each)}\n" for name, each in given.items())


def _section_lines(model: BaseModel, changes: Mapping[str, Any]) -> Iterator[str]:
    values = model.model_dump(mode="json")
    for name, info in type(model).model_fields.items():
        yield f"# {info.description}\n"
        if name in changes:
            yield f"{_key(name)} = {_value(changes[name])}\n"
            continue
        value = values.get(name, getattr(model, name))
        if isinstance(value, BaseModel):  # at its default, which a dump leaves out
            value = value.model_dump(mode="json")
        if value is None or (isinstance(value, list | tuple | dict) and not value):
            yield f"# {_key(name)} is not set\n"
            continue
        line = f"# {_key(name)} = {_value(value)}"
        yield (line if len(line) <= _WIDTH else f"# {_key(name)} has {len(value)} entries in the preset") + "\n"


def _tables(where: str, document: Mapping[str, Any]) -> Iterator[str]:
    plain = {name: each for name, each in document.items() if each is not None and not _is_table(each)}
    if where and (plain or not document):
        yield f"\n[{where}]"
    for name, each in plain.items():
        yield f"{_key(name)} = {_value(each)}"
    for name, each in document.items():
        if _is_table(each):
            yield from _tables(f"{where}.{_key(name)}" if where else _key(name), each)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _text(value: str) -> str:
    # JSON's escapes are TOML's, but for the one character that TOML wants escaped and JSON does not
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(name)} = {_value(each)}" for name, each in value.items() if each is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(_value(each) for each in value)}]"
    return repr(value) if isinstance(value, int | float) else _text(str(value))
