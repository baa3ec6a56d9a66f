"""Mutations of configurations as text: files that are none, whatever they would say."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from mutations.config_world import WRONG, ConfigWorld
from mutations.editing import DEEP, DIGITS, HTML, cut, put
from mutations.judging import Mutant, Mutate, Refused
from mutations.toml_writing import Spelling


def _text(change: Callable[[str, Random], str | bytes], names: str = "popalign", suffix: str = ".toml") -> Mutate:
    """Of the file as it is written."""

    def mutate(world: ConfigWorld, random: Random, folder: Path) -> Mutant:
        _, document, taker = world.draw(random)
        text = json.dumps(document) if suffix == ".json" else Spelling(random).write(document)
        return Mutant(put(folder / f"popalign{suffix}", change(text, random)), Refused(WRONG, names), taker)

    return mutate


def _in_a_section(text: str, random: Random, *lines: str) -> str:
    """Lines put behind the header of a section."""
    found = text.split("\n")
    at = random.choice([0, *(number + 1 for number, line in enumerate(found) if line.startswith("["))])
    return "\n".join([*found[:at], *lines, *found[at:]])


def _dots(text: str, random: Random) -> str:
    key = random.choice([".".join("a" * 50_000), " . ".join(["'a'"] * 70), ".".join(['"b c"'] * 9000)])
    lines = random.choice([[f"{key} = 1"], [f"[{key}]"], [f"x = {{ {key} = 1 }}"]])
    return f"{text}\n{lines[0]}\n" if lines[0].startswith("[") else _in_a_section(text, random, *lines)


def _deep(text: str, random: Random) -> str:
    n = random.choice([40, 200, 100_000])
    inner = random.choice([f"[{DEEP[:n]}", "x = " + "[" * n + "]" * n, "x = " + "{y = " * n + "1" + "}" * n])
    return _in_a_section(text, random, inner)


def _doubled(text: str, random: Random) -> str:
    """A key of its table once more."""
    lines = text.split("\n")
    at = random.choice([number for number, line in enumerate(lines) if " = " in line])
    return "\n".join([*lines[: at + 1], lines[at], *lines[at + 1 :]])


def _half(text: str, random: Random) -> str:
    """Broken off within a text, which has no end then."""
    places = [number for number, mark in enumerate(text) if mark == '"']
    start, end = random.choice(list(zip(places[::2], places[1::2], strict=True)))
    return text[: random.randint(start + 1, end)]


def _doubled_in_json(text: str, random: Random) -> str:
    document = json.loads(text)
    section = random.choice([name for name, value in document.items() if isinstance(value, dict) and value])
    name = random.choice(list(document[section]))
    inner = json.dumps(document[section])
    return text.replace(inner, f'{inner[:-1]}, "{name}": {json.dumps(document[section][name])}}}')


TEXTS: dict[str, Mutate] = {
    "dots": _text(_dots, "dots"),
    "deep": _text(_deep),
    "digits": _text(lambda text, random: _in_a_section(text, random, f"seed = {DIGITS}"), "digits"),
    "a key twice": _text(_doubled),
    "half a file": _text(_half),
    "a raw NUL": _text(lambda text, random: _in_a_section(text, random, "x = 'a\0b'")),
    "half a character": _text(lambda text, random: _in_a_section(text, random, 'x = "\\ud800"')),
    "no TOML": _text(
        lambda text, random: _in_a_section(text, random, random.choice(["a: b", "x = ", "= 3", "x == 1", "x = nope"]))
    ),
    "html": _text(lambda text, random: HTML),
    "Latin-1": _text(lambda text, random: _in_a_section(text, random, 'x = "ä"').encode("latin-1")),
    "UTF-16": _text(lambda text, random: text.encode("utf-16")),
    "nothing": _text(lambda text, random: random.choice(["", "\n", "# nothing\n"])),
    "JSON in a TOML file": _text(lambda text, random: json.dumps({"preset": "smoke"})),
    "TOML in a JSON file": _text(lambda text, random: 'preset = "smoke"\n', suffix=".json"),
    "half a JSON file": _text(lambda text, random: cut(text.encode(), random), suffix=".json"),
    "a key twice in JSON": _text(_doubled_in_json, "more than once", suffix=".json"),
    "half a character in JSON": _text(lambda text, random: text[:-1] + ', "x": "\\ud800"}', suffix=".json"),
    "deep JSON": _text(lambda text, random: text[:-1] + f', "x": {DEEP}', suffix=".json"),
    "digits in JSON": _text(lambda text, random: text[:-1] + f', "x": {DIGITS}}}', suffix=".json"),
    "no object in JSON": _text(lambda text, random: random.choice(["[]", "3", '"smoke"', "null"]), suffix=".json"),
}
