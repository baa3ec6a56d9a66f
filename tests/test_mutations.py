"""2,000 mutated models, tables, configurations, images and answers: each is refused, counted or equal, as it must be.

A few of each kind by default; all of them, 100 through the command line, with `-m slow` (about a quarter of an hour):

    .venv/bin/python -m pytest -m slow -n 0 tests/test_mutations.py
"""

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations.answers import ANSWERS
from mutations.configs import CONFIGS
from mutations.images import IMAGES
from mutations.judging import Counted, Equal, Judgement, Kind, Mutant, Refused, Taker, judge
from mutations.models import MODELS
from mutations.tables import TABLES

from popalign_core.errors import InputError

KINDS = {kind.name: kind for kind in (MODELS, CONFIGS, TABLES, IMAGES, ANSWERS)}
N_EACH = 400
MakeWorld = Callable[[Kind], Any]
by_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> MakeWorld:
    """The pristine inputs of a kind, made when they are first asked for."""
    made: dict[str, Any] = {}

    def make(kind: Kind) -> Any:
        if kind.name not in made:
            made[kind.name] = kind.world(tmp_path_factory.mktemp(kind.name))
        return made[kind.name]

    return make


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Names of folders that are not there yet."""
    root, numbers = tmp_path_factory.mktemp("mutants"), count()
    return lambda: root / str(next(numbers))


@by_kind
@settings(max_examples=12, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_a_few_mutations(
    kind: Kind, data: st.DataObject, make_world: MakeWorld, new_folder: Callable[[], Path]
) -> None:
    name = data.draw(st.sampled_from(sorted(kind.mutations)), label="mutation")
    seed = data.draw(st.integers(0, 2**32), label="seed")
    mutant = kind.mutate(make_world(kind), name, seed, new_folder())
    assert judge(mutant, new_folder()).wrong is None, mutant


@pytest.mark.slow
@pytest.mark.timeout(3600)
@by_kind
def test_all_mutations(
    kind: Kind, make_world: MakeWorld, new_folder: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes, seconds, wrong = defaultdict[str, Counter[str]](Counter), defaultdict[str, float](float), list[str]()
    for name, mutant, judgement in _judged(kind, make_world(kind), new_folder):
        outcomes[name][type(mutant.outcome).__name__] += 1
        seconds[name] = max(seconds[name], judgement.seconds)
        if judgement.wrong is not None:
            wrong.append(f"{name}: {mutant.given}\n{judgement.wrong}")
    with capsys.disabled():
        print("\n".join(["", *_table(kind.name, outcomes, seconds), f"{len(wrong)} wrong"]))  # noqa: T201
    assert wrong == []


def _judged(kind: Kind, world: Any, new_folder: Callable[[], Path]) -> Iterator[tuple[str, Mutant, Judgement]]:
    """`N_EACH` mutants: the mutations in turn, each time with another seed, and those for the command line."""
    names = islice(cycle(kind.mutations), N_EACH - kind.n_commands)
    for seed, name in enumerate(names):
        place, scratch = new_folder(), new_folder()
        mutant = kind.mutate(world, name, seed, place)
        yield name, mutant, judge(mutant, scratch)
        for folder in (place, scratch):
            shutil.rmtree(folder, ignore_errors=True)
    for name, mutant in islice(kind.commanded(world, new_folder()), kind.n_commands):
        yield f"{name} (command)", mutant, judge(mutant, new_folder(), by_command=True)


def _table(kind: str, outcomes: dict[str, Counter[str]], seconds: dict[str, float]) -> Iterator[str]:
    widths = "{:<15} {:<60} {:>6} {:>8} {:>8} {:>6} {:>10}"
    yield widths.format("kind", "mutation", "number", "refused", "counted", "equal", "slowest, s")
    rows = [*sorted(outcomes.items()), ("all", sum(outcomes.values(), Counter()))]
    for name, found in rows:
        slowest = max(seconds.values()) if name == "all" else seconds[name]
        numbers = (found["Refused"], found["Counted"], found["Equal"])
        yield widths.format(kind, name, found.total(), *numbers, f"{slowest:.2f}")


def _refuse(given: str, scratch: Path) -> Any:
    raise InputError(given)


@pytest.mark.parametrize(
    ("outcome", "read", "wrong"),
    [
        (Refused(3, "the file"), _refuse, None),
        (Refused(3, "a field"), _refuse, "the message does not name 'a field': the file"),
        (Refused(4, "the file"), _refuse, "exit code 3, not 4: the file"),
        (Refused(3, "the file"), lambda given, scratch: 7, "taken: 7"),
        (Refused(3, "x"), lambda given, scratch: _refuse("x" * 1000, scratch), "message of 1000 characters"),
        (Equal(), lambda given, scratch: len(given), "other result: 8"),
        (Equal(), lambda given, scratch: given[:3], None),
        (Equal(), lambda given, scratch: given[3] if given == "the file" else "t", "other result: ' '"),
        (Counted({"torn": 1}), lambda given, scratch: {"torn": 1}, None),
        (Counted({"torn": 1}), lambda given, scratch: {}, r"other result: \{\}"),
        (Counted({"torn": 1}), _refuse, "refused: the file"),
        (Counted({"torn": 1}), lambda given, scratch: given["torn"], "traceback: TypeError"),
    ],
)
def test_the_judge_sees_what_is_wrong(outcome: Any, read: Any, wrong: str | None, tmp_path: Path) -> None:
    judgement = judge(Mutant("the file", outcome, Taker("the pristine file", read)), tmp_path / "scratch")
    if wrong is None:
        assert judgement.wrong is None
    else:
        assert re.match(wrong, str(judgement.wrong))
