"""From command-line words to a configuration."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from popalign_core.config import PipelineConfig, RuntimeConfig, describe_problems, load_config, parse_config
from popalign_core.config.presets import preset as find_preset
from popalign_core.documents import read_toml
from popalign_core.errors import ConfigError

DEFAULT_PRESET = "portraits"
DEFAULT_ROOT = "artifacts"
RUNTIME_PREFIX = "runtime."
_MOST_DOTS = 16
_LONGEST_NAME = 200
_HASH_DIGITS = 6


def build_config(
    preset: str | None, config: Path | None, settings: list[str], root: str | None
) -> tuple[PipelineConfig, RuntimeConfig]:
    """The configuration a command works with.

    Args:
        preset: Name of a preset; `portraits` when neither it nor `config` is given.
        config: TOML or .json file.
        settings: `field.field=value`, laid over preset or file; `runtime.` fields go to `RuntimeConfig`.
        root: Store root, or None for the default.

    Raises:
        ConfigError: When both a preset and a file are given, or a name, a field or a value does not fit.
    """
    if preset and config:
        raise ConfigError(
            f"--preset {preset} and --config {config} exclude each other; give one (a file may start from a preset)"
        )
    base = load_config(config) if config else find_preset(preset or DEFAULT_PRESET)
    return lay_settings(base.model_dump(exclude_none=True), settings, {"root": root} if root else {})


def lay_settings(
    document: dict[str, Any], settings: Sequence[str], runtime: dict[str, Any]
) -> tuple[PipelineConfig, RuntimeConfig]:
    """Lay values over a configuration and the settings of the machine.

    Args:
        document: The configuration.
        settings: `field.field=value`; `runtime.` fields go to the other one.
        runtime: Settings of the machine.

    Raises:
        ConfigError: When a name, a field or a value does not fit.
    """
    document, runtime = dict(document), dict(runtime)
    for setting in settings:
        field, value = parse_setting(setting)
        if field.startswith(RUNTIME_PREFIX):
            runtime[field.removeprefix(RUNTIME_PREFIX)] = value
        else:
            _put(document, field, value)
    origin = "configuration with --set" if settings else "configuration"
    return parse_config(document, origin=origin), _parse_runtime(runtime)


def run_name(
    preset: str | None,
    config: Path | None,
    name: str | None,
    settings: Sequence[str] | None = None,
    ending: str = "",
) -> str:
    """The folder under `runs/`: the name given, else the file's or the preset's name.

    Args:
        preset: Name of a preset.
        config: TOML or .json file.
        name: As the user gave it.
        settings: Words of --set; where they change what is run, the name ends in a short hash of them.
        ending: What stands behind the file's or the preset's name.

    Raises:
        ConfigError: When it is not a plain folder name.
    """
    if name:
        chosen = name
    else:
        chosen = (config.stem if config else preset or DEFAULT_PRESET) + ending
        changes = sorted(each for each in settings or () if not each.strip().startswith(RUNTIME_PREFIX))
        if changes:
            chosen += f"-{hashlib.sha256(repr(changes).encode()).hexdigest()[:_HASH_DIGITS]}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", chosen) or len(chosen) > _LONGEST_NAME:
        raise ConfigError(
            f"run name {chosen[:_LONGEST_NAME]!r} is not a folder name; use letters, digits, '.', '-' and '_', at most "
            f"{_LONGEST_NAME}, see --name"
        )
    return chosen


def parse_sweep(words: Sequence[str]) -> dict[str, list[Any]]:
    """Fields with their values from words such as `training.beta=10,20,40`.

    Raises:
        ConfigError: For a word that is no such thing, or a field that is there twice.
    """
    found: dict[str, list[Any]] = {}
    for word in words:
        field, equals, text = word.partition("=")
        if not equals or not text.strip() or field.strip() in found:
            raise ConfigError(
                f"{word!r} is not a sweep; write each field once, with its values: training.beta=10,20,40"
            )
        try:
            found[field.strip()] = read_toml(f"values = [{text}]")["values"]
        except ValueError:
            found[field.strip()] = [part.strip() for part in text.split(",")]  # bare words are strings
    return found


def parse_setting(setting: str) -> tuple[str, Any]:
    """Field and value of `field=value`; a value that is no TOML is text.

    Raises:
        ConfigError: When there is no `=` or no field.
    """
    field, equals, text = setting.partition("=")
    field = field.strip()
    if not equals or not all(field.split(".")) or field.count(".") > _MOST_DOTS:
        raise ConfigError(f"--set {setting[:200]!r} is not field=value; write for example --set training.beta=30")
    try:
        return field, read_toml(f"value = {text}")["value"]
    except ValueError:
        return field, text  # bare words are strings: --set training.objective=sft


def put_setting(document: dict[str, Any], setting: str) -> None:
    """Put the value of `field.field=value` into a document.

    Raises:
        ConfigError: When it is not such a setting, or a field in between is not a table.
    """
    _put(document, *parse_setting(setting))


def _put(document: dict[str, Any], field: str, value: Any) -> None:
    *parents, last = field.split(".")
    for parent in parents:
        inner = document.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"--set {field}: {parent!r} is not a table; put lists into a file and give it with --config"
            )
        document = inner
    document[last] = value


def _parse_runtime(values: dict[str, Any]) -> RuntimeConfig:
    from pydantic import ValidationError

    try:
        return RuntimeConfig.model_validate(values)
    except ValidationError as error:
        problems = describe_problems(error, RuntimeConfig, RUNTIME_PREFIX)
        raise ConfigError("runtime settings are invalid:\n" + "\n".join(problems)) from error
