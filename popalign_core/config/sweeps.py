"""Sweeps: one parameter or several over values, each point a system of its own."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from popalign_core.config.base import describe_problems
from popalign_core.config.pipeline import PipelineConfig, SystemConfig, merge_documents
from popalign_core.config.systems import configure_system, configure_training, find_system
from popalign_core.errors import ConfigError

SECTIONS = ("sampling", "model", "preferences", "training")
"""Of the configuration, what a system may change: the first two of its evaluation images, the others of its model."""

Setting = tuple[str, Any]
"""Field as `--set` spells it, and its value."""


@dataclass(frozen=True)
class SweepPoint:
    """A system that a sweep varies, with one value.

    Attributes:
        name: The system that stands for it.
        system: The system varied.
        parameter: The field; several are joined.
        value: As text.
        order: Of the value among those of its parameter.
    """

    name: str
    system: str
    parameter: str
    value: str
    order: int


def expand_sweep(
    config: PipelineConfig, systems: Sequence[str], parameters: Mapping[str, Sequence[Any]], *, grid: bool = False
) -> tuple[PipelineConfig, list[SweepPoint]]:
    """The points of a sweep, and the configuration with a system for each.

    Args:
        config: Of the pipeline.
        systems: Names of those to vary.
        parameters: Field, such as `training.beta`, to its values.
        grid: Every combination of values; otherwise one parameter at a time, the others as the system has them.

    Raises:
        ConfigError: For a field that no system can change, a value twice, or a system that does not train.
    """
    _check(config, systems, parameters)
    if grid:
        runs = [(", ".join(parameters), list(product(*(_settings(item) for item in parameters.items()))))]
    else:
        runs = [(name, [(setting,) for setting in _settings((name, values))]) for name, values in parameters.items()]
    added, points = dict(config.systems), []
    for system in systems:
        for parameter, combinations in runs:
            for order, settings in enumerate(combinations):
                point = SweepPoint(_name(system, settings), system, parameter, _value(settings), order)
                added[point.name] = vary(find_system(config, system), settings)
                points.append(point)
    twice = [name for name, n in Counter(point.name for point in points).items() if n > 1]
    if twice:
        raise ConfigError(f"two points of the sweep are both called {twice[0]!r}; give each system and value once")
    return config.model_copy(update={"systems": added}), points


def vary(system: SystemConfig, settings: Sequence[Setting]) -> SystemConfig:
    """A system with fields laid over what it changes already.

    Raises:
        ConfigError: When the system cannot be changed so, as one of imported images.
    """
    document = system.model_dump(exclude_none=True)
    if document.pop("aligned"):
        document["training"] = {}  # the pipeline's own training is training without changes
    for field, value in settings:
        for part in reversed(field.split(".")):
            value = {part: value}
        document = merge_documents(document, value)
    try:
        return SystemConfig.model_validate(document)
    except ValidationError as error:
        listed = ", ".join(f"{field}={_text(value)}" for field, value in settings)
        raise ConfigError(
            f"a system cannot have {listed}:\n" + "\n".join(describe_problems(error, SystemConfig))
        ) from error


def default_system(parameters: Mapping[str, Sequence[Any]]) -> str:
    """Which system a sweep varies when none is named: the base model as long as nothing is trained."""
    return "base" if all(field.startswith(("sampling.", "model.")) for field in parameters) else "aligned"


def configured_value(config: PipelineConfig, system: str, parameter: str) -> str:
    """What a system has for a parameter, as a point's value has it; '' for several or where nothing is set."""
    section = parameter.partition(".")[0]
    own = (configure_training if section in ("preferences", "training") else configure_system)(config, system)
    value: Any = own.model_dump(mode="json")
    for part in parameter.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else _text(value)


def _check(config: PipelineConfig, systems: Sequence[str], parameters: Mapping[str, Sequence[Any]]) -> None:
    if not parameters:
        raise ConfigError("there is nothing to sweep; give a field with values, such as training.beta=10,20,40")
    for field, values in parameters.items():
        section, _, rest = field.partition(".")
        if section not in SECTIONS or not rest:
            raise ConfigError(f"a sweep cannot vary {field!r}; give a field of {', '.join(SECTIONS)}, as --set has it")
        if len({_text(value) for value in values}) != len(values) or not values:
            listed = ", ".join(map(_text, values)) or "none"
            raise ConfigError(f"values of {field} are {listed}; give each once, and one at least")
    trained = [field for field in parameters if field.startswith(("preferences.", "training."))]
    idle = [name for name in systems if trained and not find_system(config, name).trains]
    if idle:
        raise ConfigError(f"{trained[0]} is of a training, and system {idle[0]!r} has none; vary aligned, or popalign")


def _settings(item: tuple[str, Sequence[Any]]) -> list[Setting]:
    field, values = item
    return [(field, value) for value in values]


def _name(system: str, settings: Sequence[Setting]) -> str:
    """A system's name: letters that node names may hold."""
    listed = ",".join(f"{field}={_text(value)}" for field, value in settings)
    return re.sub(r"[^A-Za-z0-9.+_=,-]+", "_", f"{system}+{listed}")


def _value(settings: Sequence[Setting]) -> str:
    return ", ".join(_text(value) for _, value in settings)


def _text(value: Any) -> str:
    """20 and 20.0 are one value, which a configuration may hold as either."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)
