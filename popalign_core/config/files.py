"""Configurations from files."""

import re
from pathlib import Path
from typing import Any

from popalign_core.config.pipeline import PipelineConfig, merge_documents, parse_config
from popalign_core.config.presets import preset
from popalign_core.documents import check_depth, read_json, read_toml
from popalign_core.errors import ConfigError

_PIPES = (Path("/dev"), Path("/proc"))
"""Where a shell leaves what another command writes: `--config <(sed ... popalign.toml)`, `/dev/stdin`."""
_DEEPEST = 32
_AT_LINE = re.compile(r"at line (\d+)")
_BARE_WORD = re.compile(r"\s*([\w.-]+)\s*=\s*(?!True|False)[A-Za-z~/.]")
_SHOWN = 300
"""Characters of a path in messages."""


def load_config(path: Path) -> PipelineConfig:
    """Read a TOML file, or a .json file as a report prints it; `preset = "NAME"` at the top starts from that preset.

    Raises:
        ConfigError: When the file is missing, is not TOML (JSON) in UTF-8, or does not fit.
    """
    is_json = path.suffix.lower() == ".json"
    kind = "JSON" if is_json else "TOML"
    text = _read_text(path, kind)
    try:
        document: Any = read_json(text, each_once=True) if is_json else read_toml(text)
        check_depth(document, _DEEPEST)
    except ValueError as error:
        hint = "" if is_json else _missing_quotes(text, str(error))
        raise ConfigError(f"{path} is not {kind}: {error}; {hint or '`popalign init` writes an example'}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is not one JSON object but {document!r:.60}; give it as a report prints it")
    base = document.pop("preset", None)
    if base is not None:
        document = merge_documents(preset(base).model_dump(exclude_none=True), document)
    return parse_config(document, origin=str(path))


def _missing_quotes(text: str, problem: str) -> str:
    """What to do where the line of a problem has a bare word for a value; '' elsewhere. A value may be a secret."""
    place = _AT_LINE.search(problem)
    lines = text.splitlines()
    line = lines[int(place[1]) - 1] if place and int(place[1]) <= len(lines) else ""
    found = _BARE_WORD.match(line)
    return f'put text in quotes: {found[1]} = "..."' if found else ""


def _read_text(path: Path, kind: str) -> str:
    shown = str(path) if len(str(path)) <= _SHOWN else f"{str(path)[:_SHOWN]}..."
    try:
        if path.is_fifo() and not any(path.is_relative_to(place) for place in _PIPES):
            raise ConfigError(f"cannot read configuration {shown}: it is a pipe; give an existing TOML or .json file")
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except OSError as error:
        raise ConfigError(
            f"cannot read configuration {shown}: {error.strerror}; give an existing TOML or .json file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown} is not {kind}: {error}; save it as UTF-8") from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"cannot read configuration {shown!r}: {error}; give an existing file") from error
