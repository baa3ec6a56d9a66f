"""Configurations from files."""

import json
import tomllib
from pathlib import Path

from popalign_core.config.pipeline import PipelineConfig, merge_documents, parse_config
from popalign_core.config.presets import preset
from popalign_core.errors import ConfigError


def load_config(path: Path) -> PipelineConfig:
    """Read a TOML file, or a .json file as a report prints it; `preset = "NAME"` at the top starts from that preset.

    Raises:
        ConfigError: When the file is missing, is not TOML (JSON) in UTF-8, or does not fit.
    """
    kind, read = ("JSON", json.loads) if path.suffix.lower() == ".json" else ("TOML", tomllib.loads)
    try:
        document = read(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise ConfigError(
            f"cannot read configuration {path}: {error.strerror}; give an existing TOML or .json file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not {kind}: {error}; save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not {kind}: {error}; see README.md for an example") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is not one JSON object but {document!r:.60}; give it as a report prints it")
    base = document.pop("preset", None)
    if base is not None:
        document = merge_documents(preset(base).model_dump(exclude_none=True), document)
    return parse_config(document, origin=str(path))
