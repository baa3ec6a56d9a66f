"""Files and folders changed without touching what they were copied from, and documents broken in the usual ways."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

DEEP = "[" * 100_000
DIGITS = "9" * 5000
HTML = "<!DOCTYPE html>\n<html><head><title>404</title></head><body>Entry not found</body></html>\n"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 335544320\n".format("4d7a" * 16)
"""What is left of a file when it was cloned without git-lfs."""
NO_FILES: Mapping[str, str] = {"html": HTML, "a pointer": POINTER, "nothing": ""}
"""What lies in place of files after a download that went wrong."""
BYSTANDERS: Mapping[str, str] = {
    "README.md": "---\nlicense: openrail\n---\n# A model\n",
    ".gitattributes": "*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
    ".DS_Store": "\0\0\0\1Bud1",
    ".cache/huggingface/download/x.metadata": "0\n",
    "._config.json": "\0\5\26\7",
    "LICENSE": "Apache",
    "desktop.ini": "[.ShellClassInfo]\r\n",
    "samples/1.png": "no image",
}
"""Files that lie beside others on hubs and disks."""


def copy_linked(source: Path, target: Path) -> Path:
    """The same files under other names; `put` in place of writing to them."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def put(file: Path, content: str | bytes) -> Path:
    """Write a file anew."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def put_json(file: Path, document: Any, **options: Any) -> Path:
    """Write a document anew."""
    return put(file, json.dumps(document, **options))


def read_document(file: Path) -> Any:
    """Of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def cut(content: bytes, random: Random, least: float = 0.0, most: float = 0.95) -> bytes:
    """The beginning, of a length between two shares of the whole."""
    return content[: int(len(content) * random.uniform(least, most))]


def break_json(text: str, fault: str, random: Random) -> str:
    """A JSON object that is none any more, or none that says anything."""
    document = json.loads(text)
    name = random.choice(list(document)) if isinstance(document, dict) else ""
    broken = {
        "cut": lambda: cut(text.rstrip().encode(), random).decode(errors="ignore"),
        "empty object": lambda: "{}",
        "list": lambda: "[]",
        "null": lambda: "null",
        "text": lambda: '"settings"',
        "deep": lambda: f'{{"{name}": {DEEP}',
        "digits": lambda: json.dumps(document | {name: 0})[:-1] + f', "{name}": {DIGITS}}}',
        "html": lambda: HTML,
        "a pointer": lambda: POINTER,
        "nothing": lambda: "",
        "trailing comma": lambda: text.rstrip()[:-1] + ",}",
        "single quotes": lambda: str(document),
    }
    return broken[fault]()


JSON_FAULTS = (
    *("cut", "empty object", "list", "null", "text", "deep", "digits", "html", "a pointer", "nothing"),
    *("trailing comma", "single quotes"),
)


def respell(document: Any, random: Random) -> str:
    """The same JSON: keys in another order, other spaces, other ends of lines."""

    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: shuffled(value[key]) for key in random.sample(list(value), len(value))}

    indent = random.choice([None, 1, 4, "\t"])
    text = json.dumps(shuffled(document), indent=indent, ensure_ascii=random.random() < 0.5)
    return (
        random.choice(["", "\n", " "]) + random.choice([text, text.replace("\n", "\r\n")]) + random.choice(["", "\n"])
    )
