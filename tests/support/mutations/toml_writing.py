"""TOML in all the ways in which people write it: the same document, differently spelt."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_COMMENTS = ("# a comment", "# lr = 1e-5  # old", '# "quoted" [table] { x = 1 }', "#", "# ü ✓", "# \\u0000 is not here")


@dataclass(frozen=True)
class Spelling:
    """How a document is written; as told here it is plain.

    Attributes:
        random: Draws what is used of the rest.
        shuffled: Keys in any order.
        dotted: Share of tables whose keys are dotted ones of their parent's.
        inline: Share of tables and lists of tables within braces.
        commented: Comments and empty lines between and behind.
        quoted: Keys in quotation marks.
        varied: Texts, numbers and lists in TOML's other forms.
    """

    random: Random
    shuffled: bool = False
    dotted: float = 0.0
    inline: float = 0.0
    commented: bool = False
    quoted: bool = False
    varied: bool = False

    def write(self, document: Mapping[str, Any]) -> str:
        """The document as TOML."""
        own, later = self._table(document, ())
        lines = [*own, *later]
        if self.commented:
            lines = [found for line in lines for found in (*self._between(), self._commented(line))]
        return "\n".join(lines) + "\n"

    def _between(self) -> list[str]:
        return self.random.choice([[], [], [""], ["", "  "], [self.random.choice(_COMMENTS)]])

    def _commented(self, line: str) -> str:
        return f"{line}  {self.random.choice(_COMMENTS)}" if self.random.random() < 0.3 else line

    def _table(self, table: Mapping[str, Any], path: tuple[str, ...], before: str = "") -> tuple[list[str], list[str]]:
        """Lines under the header of a table, and tables that follow; `before` is a dotted key so far."""
        own, later = list[str](), list[str]()
        for key in self._ordered(table):
            value, name = table[key], before + self._key(key)
            if isinstance(value, Mapping) and value and not self._draws(self.inline):
                if self._draws(self.dotted):
                    inner, further = self._table(value, (*path, key), f"{name}.")
                    own, later = own + inner, later + further
                else:
                    later += self._section("[{}]", (*path, key), value)
            elif _are_tables(value) and not before and not self._draws(self.inline):
                later += [line for each in value for line in self._section("[[{}]]", (*path, key), each)]
            else:
                own.append(f"{name} = {self.value(value)}")
        return own, later

    def _section(self, header: str, path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
        own, later = self._table(table, path)
        return ["", header.format(".".join(map(self._key, path))), *own, *later]

    def _ordered(self, table: Mapping[str, Any]) -> list[str]:
        return self.random.sample(list(table), len(table)) if self.shuffled else list(table)

    def _draws(self, share: float) -> bool:
        return share > 0 and self.random.random() < share

    def _key(self, key: str) -> str:
        if _BARE.fullmatch(key) and not (self.quoted and self.random.random() < 0.7):
            return key
        return f"'{key}'" if self.quoted and "'" not in key else json.dumps(key, ensure_ascii=False)

    def value(self, value: Any) -> str:
        """Of a key."""
        if isinstance(value, Mapping):
            inner = [f"{self._key(key)} = {self.value(value[key])}" for key in self._ordered(value)]
            return f"{{ {', '.join(inner)} }}" if inner else "{}"
        if isinstance(value, list | tuple):
            return self._list([self.value(each) for each in value])
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return self.random.choice(list(self._texts(value)))
        return self.random.choice(list(self._numbers(value)))

    def _list(self, items: list[str]) -> str:
        if not self.varied or not items:
            return f"[{', '.join(items)}]"
        end = self.random.choice([",", ""])
        break_ = self.random.choice(["\n  ", "\n\t", " ", " # a comment, ] and all\n"])
        return f"[{break_}{f',{break_}'.join(items)}{end}{break_}]"

    def _texts(self, text: str) -> Iterator[str]:
        basic = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
        yield basic
        if self.varied:
            yield f'"""{basic[1:-1]}"""' if not text.endswith('"') else basic
            if "'" not in text and text.isprintable():
                yield f"'{text}'"
                yield f"'''\n{text}'''"
            if text and text[0].isalnum():
                yield f'"\\u{ord(text[0]):04x}{basic[2:]}' if ord(text[0]) < 0x10000 else basic

    def _numbers(self, number: float) -> Iterator[str]:
        yield repr(number)
        if self.varied and isinstance(number, int):
            yield f"{number:_}"
            yield from (f"0x{number:x}", f"0b{number:b}", f"+{number}") if number >= 0 else ()
        elif self.varied and "e" not in repr(number):
            yield f"{number!r}e0"
            yield from (f"+{number!r}",) if number >= 0 else ()


def _are_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) and each for each in value)
