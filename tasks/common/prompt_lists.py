"""The prompt lists that a configuration names, read once, and hashed by what they say."""

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from popalign_core.config import BenchmarkConfig, PromptsConfig
from popalign_core.errors import InputError
from popalign_core.prompts.lists import SETS, find_text_column, parse_list, shipped_list

_GIVE = f"give an existing file, or one of the shipped sets {', '.join(SETS)}"
FIELDS = ("train_lists", "eval_lists", "generic_lists", "retained_lists")


@dataclass(frozen=True)
class PromptList:
    """A list as it was given.

    Attributes:
        name: Of the shipped set, or the file's path.
        texts: In order.
    """

    name: str
    texts: tuple[str, ...]

    def digest(self) -> str:
        """Of the texts, whatever file they come in."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


def read_lists(config: PromptsConfig) -> dict[str, list[PromptList]]:
    """The lists of each field that names any.

    Raises:
        InputError: When one cannot be read, or holds no prompts.
    """
    return {field: [read_list(name) for name in names] for field in FIELDS if (names := getattr(config, field))}


def read_benchmarks(benchmarks: Mapping[str, BenchmarkConfig]) -> dict[str, PromptList]:
    """The list of each benchmark with a name of its own, cut down to as many prompts as it takes.

    Raises:
        InputError: When one cannot be read, or holds no prompts.
    """
    from popalign_core.prompts.benchmarks import evenly

    lists = {name: read_list(benchmark.list) for name, benchmark in benchmarks.items()}
    return {
        name: PromptList(found.name, tuple(evenly(found.texts, benchmarks[name].n_prompts)))
        for name, found in lists.items()
    }


def count_listed(config: PromptsConfig) -> dict[str, int]:
    """Field -> how many prompts its lists hold, before any is rejected."""
    found = read_lists(config)
    return {field: sum(len(part.texts) for part in found.get(field, ())) for field in FIELDS}


def read_list(name: str) -> PromptList:
    """A list by the name of a shipped set, or a file.

    Raises:
        InputError: When it cannot be read, or holds no prompts.
    """
    if name in SETS:
        return PromptList(name, tuple(shipped_list(name)[0]))
    path = Path(name)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited on
            raise InputError(f"prompt list {name!r} is not a regular file; {_GIVE}")
        return PromptList(name, _read_file(path, found.st_mtime_ns, found.st_size))
    except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"prompt list {name} cannot be read ({reason}); {_GIVE}") from error


@lru_cache(maxsize=32)  # a plan asks for the key and for the counts of several stages
def _read_file(path: Path, mtime_ns: int, size: int) -> tuple[str, ...]:
    if path.suffix.lower() != ".parquet":
        return tuple(parse_list(str(path), path.read_bytes()))
    from storage.formats.external_files import read_texts

    texts = read_texts(path, lambda columns: find_text_column(str(path), columns))
    if not any(text.strip() for text in texts):
        raise InputError(f"prompt list {path} holds no prompts; give a file with at least one, or leave it out")
    return tuple(texts)
