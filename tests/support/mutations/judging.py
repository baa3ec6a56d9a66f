"""What a mutation promises of the product, and whether the product keeps it."""

import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from popalign_core.errors import PopAlignError

REPOSITORY = Path(__file__).resolve().parents[3]
MOST_SECONDS = 60.0
LONGEST_MESSAGE = 1000  # characters
_MOST_SEEDS = 50


@dataclass(frozen=True)
class Refused:
    """A message that `names` matches, and this exit code of README's table."""

    exit_code: int
    names: str


@dataclass(frozen=True)
class Counted:
    """Less is in the result, and what is not there is counted in it: this is the result."""

    result: Any


@dataclass(frozen=True)
class Equal:
    """The result is that of the pristine input."""


@dataclass
class Taker:
    """A pristine input, and how the product takes such inputs; both readings get a folder of their own for whatever
    they write.
    """

    pristine: Any
    read: Callable[[Any, Path], Any]
    command: Callable[[Any, Path], Any] | None = None
    _expected: dict[bool, Any] = field(default_factory=dict)

    def expected(self, folder: Path, *, by_command: bool) -> Any:
        """The result of the pristine input."""
        if by_command not in self._expected:
            self._expected[by_command] = self.take(self.pristine, folder, by_command=by_command)
        return self._expected[by_command]

    def take(self, given: Any, folder: Path, *, by_command: bool) -> Any:
        """The result of an input."""
        take = self.command if by_command else self.read
        assert take is not None
        folder.mkdir(parents=True)
        return take(given, folder)


class Mutant(NamedTuple):
    """A mutated input, and what must become of it."""

    given: Any
    outcome: Refused | Counted | Equal
    taker: Taker


Mutate = Callable[[Any, Random, Path], Mutant]
"""From a world of pristine inputs, randomness and an empty folder."""


@dataclass(frozen=True)
class Kind:
    """Mutations of one kind of input.

    Attributes:
        name: Of the kind.
        world: Makes the pristine inputs in a folder.
        mutations: By name.
        n_commands: How many of the full run go through the command line.
    """

    name: str
    world: Callable[[Path], Any]
    mutations: Mapping[str, Mutate]
    n_commands: int

    def mutate(self, world: Any, name: str, seed: int, folder: Path) -> Mutant:
        """The mutant of a seed, in a folder that is made for it."""
        folder.mkdir(parents=True)
        return self.mutations[name](world, Random(f"{self.name} {name} {seed}"), folder)

    def commanded(self, world: Any, folder: Path) -> Iterator[tuple[str, Mutant]]:
        """Mutants that the command line can take, the mutations in turn, without an end."""
        for turn in range(sys.maxsize):
            for name in Random(self.name).sample(list(self.mutations), len(self.mutations)):
                for seed in range(_MOST_SEEDS):
                    place = folder / f"{turn}-{len(list(folder.iterdir())) if folder.exists() else 0}"
                    mutant = self.mutate(world, name, 10_000 + turn * _MOST_SEEDS + seed, place)
                    if mutant.taker.command is not None:
                        yield name, mutant
                        break


class Judgement(NamedTuple):
    """What is wrong, if anything is, and how long the product took."""

    wrong: str | None
    seconds: float


class CommandError(Exception):
    """`popalign` ended with another exit code than 0.

    Attributes:
        exit_code: Its code.
    """

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def judge(mutant: Mutant, folder: Path, *, by_command: bool = False) -> Judgement:
    """Let the product take a mutated input."""
    expected = None
    if isinstance(mutant.outcome, Equal):
        expected = mutant.taker.expected(folder / "pristine", by_command=by_command)
    elif isinstance(mutant.outcome, Counted):
        expected = mutant.outcome.result
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user's process has no warnings for errors
        wrong = _fault(mutant, expected, folder / "mutant", by_command=by_command)
    seconds = time.monotonic() - start
    return Judgement(wrong or (f"took {seconds:.0f} s" if seconds > MOST_SECONDS else None), seconds)


def _fault(mutant: Mutant, expected: Any, folder: Path, *, by_command: bool) -> str | None:
    try:
        result = mutant.taker.take(mutant.given, folder, by_command=by_command)
    except (PopAlignError, CommandError) as error:
        if not isinstance(mutant.outcome, Refused):
            return f"refused: {error}"
        return _wrong_refusal(mutant.outcome, error)
    except Exception as error:  # noqa: BLE001 (whatever it is, the user would see a traceback)
        return f"traceback: {type(error).__name__}: {error}"
    if isinstance(mutant.outcome, Refused):
        return f"taken: {result!r:.500}"
    return None if result == expected else f"other result: {result!r:.900}\nexpected: {expected!r:.900}"


def _wrong_refusal(outcome: Refused, error: PopAlignError | CommandError) -> str | None:
    message = str(error)
    if error.exit_code != outcome.exit_code:
        return f"exit code {error.exit_code}, not {outcome.exit_code}: {message}"
    if len(message) >= LONGEST_MESSAGE or "Traceback" in message:
        return f"message of {len(message)} characters: {message}"
    return None if re.search(outcome.names, message) else f"the message does not name {outcome.names!r}: {message}"


def popalign(*words: str) -> str:
    """What the command prints, in a process of its own.

    Raises:
        CommandError: When it fails; with what it said about that.
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "NO_PROXY": "127.0.0.1", "COLUMNS": "200"}
    ran = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * MOST_SECONDS,
    )
    if ran.returncode:
        # before it come lines of progress
        raise CommandError(ran.returncode, ran.stderr[max(ran.stderr.rfind("\npopalign: "), 0) :].strip())
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.stdout
