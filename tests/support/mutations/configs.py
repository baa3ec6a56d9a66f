"""Mutations of configurations: files of TOML and JSON that say the same, or cannot be one."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from leaves import Leaf, look_up
from pydantic import BaseModel

from mutations.config_texts import TEXTS
from mutations.config_world import WRONG, ConfigWorld, get, paths_of, set_at, write
from mutations.editing import put, respell
from mutations.judging import Equal, Kind, Mutant, Mutate, Refused
from mutations.toml_writing import Spelling
from popalign_core.config import PipelineConfig


def _named(path: Leaf) -> str:
    return next(str(step) for step in reversed(path) if isinstance(step, str))


def _wrong_types(value: Any) -> list[Any]:
    """Values that no field of this one's type takes."""
    if isinstance(value, bool):
        return ["perhaps", 7, [True], {"on": True}]
    if isinstance(value, int | float):
        return ["many", [value], {"value": value}]
    if isinstance(value, str):
        return [7, 0.5, {"text": value}]
    if isinstance(value, list):
        return [7, {"first": 1}, [*value, {"first": 1}]]
    return [7, "text", [1]]


def _wrong_type(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    name, document, taker = world.draw(random)
    path = random.choice(paths_of(world.configs[name], document))
    wrong = random.choice(_wrong_types(get(document, path)))
    return Mutant(write(folder, set_at(document, path, wrong), random), Refused(WRONG, _named(path)), taker)


def _ranges(config: PipelineConfig, path: Leaf) -> Iterator[Any]:
    """Numbers beyond what a field says that it takes."""
    owner = look_up(config, path[:-1])
    if not isinstance(owner, BaseModel):
        return
    number = getattr(owner, str(path[-1]))
    for limit in type(owner).model_fields[str(path[-1])].metadata:
        if getattr(limit, "ge", None) is not None:
            yield from (limit.ge - 1, limit.ge - 0.001 if isinstance(number, float) else limit.ge - 10**6)
        if getattr(limit, "gt", None) is not None:
            yield from (limit.gt, limit.gt - 1)
        if getattr(limit, "le", None) is not None:
            yield from (limit.le + 1, 10**9 * (abs(limit.le) + 1))
        if getattr(limit, "lt", None) is not None:
            yield limit.lt
    if isinstance(number, float):
        yield from (float("nan"), float("inf"), -float("inf"))


def _out_of_range(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    name, document, taker = world.draw(random)
    config = world.configs[name]
    numbers = {path: list(_ranges(config, path)) for path in paths_of(config, document)}
    path = random.choice([path for path, values in numbers.items() if values])
    changed = set_at(document, path, random.choice(numbers[path]))
    return Mutant(write(folder, changed, random), Refused(WRONG, _named(path)), taker)


def _tables(config: BaseModel, path: Leaf = ()) -> Iterator[Leaf]:
    """Paths to all tables of named fields."""
    yield path
    for name in type(config).model_fields:
        value = getattr(config, name)
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
        for step, each in [("", value)] if isinstance(value, BaseModel) else inner:
            if isinstance(each, BaseModel):
                yield from _tables(each, (*path, name, step) if step != "" else (*path, name))


def _unknown_key(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    name, document, taker = world.draw(random)
    path = random.choice([path for path in _tables(world.configs[name]) if get(document, path) is not None])
    table = get(document, path)
    if random.random() < 0.5 and (longer := [key for key in table if len(key) > 3]):
        key = random.choice(longer)
        at = random.randrange(1, len(key))
        wrong = random.choice([key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key.upper()])
        if wrong in type(look_up(world.configs[name], path)).model_fields:
            wrong = f"{wrong}_x"
        table[wrong] = table.pop(key)
    else:
        wrong = random.choice(["surprise", "__proto__", "größe", "a b", "preset2"])
        table[wrong] = random.choice([1, "text", {"x": 1}, [], True])
    # without its kind, a scorer or classifier is told by its name
    names = wrong if "kind" in table else f"{wrong}|using discriminator 'kind'"
    return Mutant(write(folder, document, random), Refused(WRONG, names), taker)


def _nul(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    name, document, taker = world.draw(random)
    texts = [path for path in paths_of(world.configs[name], document) if isinstance(get(document, path), str)]
    path = random.choice(texts)
    text = get(document, path)
    at = random.randint(0, len(text))
    changed = set_at(document, path, f"{text[:at]}\0{text[at:]}")
    return Mutant(write(folder, changed, random), Refused(WRONG, f"{_named(path)}.* holds a NUL"), taker)


def _unknown_preset(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    _, _, taker = world.draw(random)
    wrong = random.choice(["smokey", "", 3, ["smoke"], {"name": "smoke"}, True, "smoke "])
    return Mutant(write(folder, {"preset": wrong}, random), Refused(WRONG, "preset"), taker)


def _lacking(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    _, document, taker = world.draw(random)
    gone = random.choice(["axes", "prompts"])
    del document[gone]
    return Mutant(write(folder, document, random), Refused(WRONG, gone), taker)


def _contrary(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    """Fields that each are fine and do not go together."""
    _, document, taker = world.draw(random)
    axis = document["axes"][0]
    changes: list[tuple[Leaf, Any, str]] = [
        (("axes",), [axis, axis], "share a name"),
        (("axes",), [], "axes"),
        (("axes",), ["gender", "height"], "height"),
        (("axes", 0, "classes"), [axis["classes"][0]] * 2, "class twice"),
        (("axes", 0, "target"), dict.fromkeys(axis["classes"], 0.9), "sums to"),
        (("axes", 0, "words"), {"nobody": "x"}, "nobody"),
        (("axes", 0, "phrase"), "{word}", "phrase"),
        (("preferences", "strategy"), "human", "curated"),
        (("model", "lora_scale"), 0.5, "there is no lora"),
        (("systems", "a@b"), {"aligned": True}, "systems"),
        (("systems", "x"), {"start": "dpo"}, "start and preferences"),
    ]
    path, value, names = random.choice(changes)
    return Mutant(write(folder, set_at(document, path, value), random), Refused(WRONG, names), taker)


def _no_file(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    _, _, taker = world.draw(random)
    place = folder / "popalign.toml"
    makes: list[Callable[[], Path]] = [
        lambda: place,
        lambda: folder,
        lambda: folder / ("x" * 5000),
        lambda: folder / "popalign.toml" / "x",
    ]
    if random.random() < 0.4:
        (folder / "loop.toml").symlink_to("loop.toml")
        makes = [lambda: folder / "loop.toml"]
    elif random.random() < 0.3:
        os.mkfifo(place)
    return Mutant(random.choice(makes)(), Refused(WRONG, "cannot read configuration"), taker)


_SPELLINGS: Mapping[str, Mapping[str, Any]] = {
    "keys in another order": {"shuffled": True},
    "dotted keys": {"dotted": 0.6},
    "inline tables": {"inline": 0.6},
    "comments": {"commented": True},
    "keys in quotes": {"quoted": True},
    "values in other forms": {"varied": True},
    "all at once": {"shuffled": True, "dotted": 0.3, "inline": 0.3, "commented": True, "quoted": True, "varied": True},
}


def _respelt(options: Mapping[str, Any]) -> Mutate:
    def mutate(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
        _, document, taker = world.draw(random)
        return Mutant(put(folder / "c.toml", Spelling(random, **options).write(document)), Equal(), taker)

    return mutate


def _other_bytes(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    """A byte order mark, other ends of lines, other names."""
    _, document, taker = world.draw(random)
    text = Spelling(random, commented=True).write(document)
    mark, end = random.choice(["", "\ufeff"]), random.choice(["\n", "\r\n"])
    name = random.choice(["c.TOML", "config", "my config (1).toml", "c.conf", "ü.toml", ".toml"])
    return Mutant(put(folder / name, mark + text.replace("\n", end)), Equal(), taker)


def _as_json(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    _, document, taker = world.draw(random)
    text = random.choice(["", "\ufeff"]) + respell(document, random)
    return Mutant(put(folder / random.choice(["c.json", "c.JSON", "a.b.json"]), text), Equal(), taker)


def _linked(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    _, _, taker = world.draw(random)
    (folder / "link.toml").symlink_to(taker.pristine)
    return Mutant(folder / "link.toml", Equal(), taker)


def _on_the_preset(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    """The preset's name, with some of what it holds once more."""
    name, document, taker = world.draw(random)
    again = {key: document[key] for key in random.sample(list(document), random.randint(0, 4))}
    return Mutant(write(folder, {"preset": name} | again, random), Equal(), taker)


def _without_defaults(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    """Fields left out that hold what they hold when they are."""
    name, document, taker = world.draw(random)
    config = world.configs[name]
    for path in paths_of(config, document):
        owner = look_up(config, path[:-1])
        if isinstance(owner, BaseModel) and random.random() < 0.8:
            field = type(owner).model_fields[str(path[-1])]
            value = getattr(owner, str(path[-1]))
            if not field.is_required() and value == field.get_default(call_default_factory=True):
                del get(document, path[:-1])[path[-1]]
    return Mutant(write(folder, document, random), Equal(), taker)


def _whole_numbers(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
    """30 for 30.0."""
    name, document, taker = world.draw(random)
    for path in paths_of(world.configs[name], document):
        value = get(document, path)
        if isinstance(value, float) and value.is_integer():
            set_at(document, path, int(value))
    return Mutant(write(folder, document, random), Equal(), taker)


CONFIGS = Kind(
    "configurations",
    ConfigWorld,
    {
        "another type": _wrong_type,
        "out of range": _out_of_range,
        "unknown key": _unknown_key,
        "NUL": _nul,
        **TEXTS,
        "unknown preset": _unknown_preset,
        "axes or prompts lacking": _lacking,
        "fields at odds": _contrary,
        "no file": _no_file,
        **{name: _respelt(options) for name, options in _SPELLINGS.items()},
        "another encoding or name": _other_bytes,
        "as JSON": _as_json,
        "a link": _linked,
        "on the preset": _on_the_preset,
        "without defaults": _without_defaults,
        "whole numbers": _whole_numbers,
    },
    n_commands=40,
)
