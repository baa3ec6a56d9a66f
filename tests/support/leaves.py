"""The leaves of a configuration, and for each a change that is valid too."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from popalign_core.config import PipelineConfig, parse_config
from popalign_core.errors import ConfigError

Leaf = tuple[str | int, ...]


def leaves(value: object, path: Leaf = ()) -> Iterator[Leaf]:
    """Paths to all that is no model, and holds none."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from leaves(getattr(value, name), (*path, name))
    elif isinstance(value, dict) and any(isinstance(each, BaseModel) for each in value.values()):
        for name, each in value.items():
            yield from leaves(each, (*path, name))
    elif isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
        for number, each in enumerate(value):
            yield from leaves(each, (*path, number))
    else:
        yield path


def look_up(value: Any, path: Leaf) -> Any:
    for step in path:
        value = getattr(value, str(step)) if isinstance(value, BaseModel) else value[step]
    return value


def dotted(path: Leaf) -> str:
    return ".".join(map(str, path))


def differing(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Dotted paths at which two dumps of a view differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() | other.keys():
            yield from differing(one.get(name), other.get(name), f"{path}.{name}" if path else str(name))
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differing(left, right, f"{path}.{number}")
    elif one != other:
        yield path


def changes(config: PipelineConfig, path: Leaf, folder: Path) -> Iterator[PipelineConfig]:
    """Valid configurations with another value at one leaf.

    Args:
        config: To be changed.
        path: Of the leaf.
        folder: Takes changed copies of files that the configuration names.
    """
    owner = look_up(config, path[:-1])
    annotation = type(owner).model_fields[str(path[-1])].annotation if isinstance(owner, BaseModel) else None
    document = config.model_dump(mode="json")
    place = document
    for step in path[:-1]:  # what is at its default may be left out of documents
        place = place[step] if isinstance(place, list) else place.setdefault(step, {})
    before = place[path[-1]] if isinstance(place, list) else place.get(path[-1])
    for candidate in _candidates(look_up(config, path), annotation, folder / dotted(path)):
        place[path[-1]] = candidate
        try:
            changed = parse_config(document)
        except ConfigError:
            continue
        if candidate != before and changed != config:
            yield changed


def _candidates(value: Any, annotation: Any, copy: Path) -> Iterator[Any]:
    yield from (choice for choice in _choices(annotation) if choice != value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value + 8, value / 2, value * 2, value - 1, value + 0.01, value - 0.01)
    elif isinstance(value, str):
        yield from ([str(_changed_copy(Path(value), copy))] if Path(value).exists() else [])
        yield from (f"{value}x", "age", "couples", "ages")
    elif value is None:
        yield from (0.5, 1, 7, True, "a {}", "other", [0.1, 0.9], {}, {"tau1": 0.5})
    elif isinstance(value, dict):
        yield from _changed_tables(value)
    else:
        yield from _changed_lists(list(value), copy)


def _choices(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _changed_tables(value: dict[str, Any]) -> Iterator[Any]:
    if value and all(isinstance(each, float) for each in value.values()):
        yield dict(zip(value, reversed(value.values()), strict=True))
    for name, each in value.items():
        yield value | {name: f"{each}x" if isinstance(each, str) else each}
        yield value | {name: {inner: f"{word}x" for inner, word in each.items()} if isinstance(each, dict) else each}
        yield {other: content for other, content in value.items() if other != name}
    yield from ({"male": "manly"}, {"young": 0, "old": 50}, {"n_steps": 3}, {"target": 0.5})


def _changed_lists(value: list[Any], copy: Path) -> Iterator[Any]:
    if value and isinstance(value[0], str) and Path(value[0]).exists():
        yield [str(_changed_copy(Path(value[0]), copy)), *value[1:]]
    yield from ([*value, "banker"], [*value, 501], [value[0], 9.5] if len(value) == 2 else value)
    yield from ([*value, "a photo of the {}"], value[:-1], ["couples"], [0.4, 0.4, 0.4])


def _changed_copy(path: Path, copy: Path) -> Path:
    """The same file or folder with other content."""
    if path.is_dir():
        shutil.copytree(path, copy, dirs_exist_ok=True)
        # of a pipeline only what is in its parts counts
        part = copy / "scheduler" if (copy / "model_index.json").exists() else copy
        (part / "more.json").write_text("{}")
        return copy
    copy = copy.with_name(copy.name + path.suffix)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes() + b"a house of glass\n")
    return copy
