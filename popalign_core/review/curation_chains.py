"""Sets made by people: where a chain starts, what it proposes next, and where the set stands against the target.

A chain is its start and its answers; the steps themselves are those of `popalign_core.preferences.chain`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from popalign_core.config import Axis
from popalign_core.config.review import CurateConfig
from popalign_core.ids import content_id
from popalign_core.preferences.chain import Chain, Member, Proposal, accept, propose, undo_proposal
from popalign_core.preferences.target import Target

Seen = Mapping[str, Mapping[str, str]]
"""Image id -> axis -> class; what a classifier could not read is absent."""


class Answer(Protocol):
    """A step that was answered."""

    slot: int
    replacement: int
    is_accepted: bool


@dataclass(frozen=True)
class AxisBalance:
    """One axis of a set.

    Attributes:
        axis: Its name.
        rows: (class, images of it, wanted share), in the order of the classes.
        n_read: Images whose class the classifier could tell.
    """

    axis: str
    rows: tuple[tuple[str, int, float], ...]
    n_read: int


def start_chain(neutral: Sequence[str], specific: Sequence[str], size: int, seed: int, prompt_id: str) -> Chain | None:
    """A set as the model samples it, and all other images as candidates.

    Args:
        neutral: Ids of the images of the prompt itself.
        specific: Ids of those of its identity-specific children.
        size: Images a set.
        seed: Of the study.
        prompt_id: Of the prompt.

    Returns:
        None when there are too few: besides the set half as many neutral images must be left, since the dispreferred
        set is made of them.
    """
    if len(neutral) < size + (size + 1) // 2:
        return None
    generator = np.random.default_rng(int(content_id("start", seed, prompt_id), 16))
    order = [sorted(neutral)[place] for place in generator.permutation(len(neutral))]
    return Chain(tuple(order[:size]), tuple(sorted([*order[size:], *specific])))


def iter_chain(members: Sequence[str], spare: Sequence[str], answers: Iterable[Answer]) -> Iterator[Chain]:
    """A chain at its start and after each answer."""
    chain = Chain(tuple(members), tuple(spare))
    yield chain
    for answer in answers:
        chain = accept(chain, Proposal(answer.slot, answer.replacement)) if answer.is_accepted else undo_proposal(chain)
        yield chain


def replay(members: Sequence[str], spare: Sequence[str], answers: Iterable[Answer]) -> Chain:
    """Where a chain stands after its answers."""
    *_, chain = iter_chain(members, spare, answers)
    return chain


def next_proposal(chain: Chain, chain_id: str, config: CurateConfig) -> Proposal | None:
    """The next step, the same however often it is asked for; None when candidates have run out."""
    number = chain.n_accepted + chain.n_undone
    if not chain.spare or number >= config.max_steps:
        return None
    return propose(chain, np.random.default_rng(int(content_id("step", config.seed, chain_id, number), 16)))


def weigh(members: Sequence[Member], seen: Seen, axes: Sequence[Axis]) -> list[AxisBalance]:
    """Where a set stands, axis by axis."""
    balances = []
    for axis in axes:
        read = [seen.get(str(member), {}).get(axis.name) for member in members]
        rows = tuple((name, read.count(name), share) for name, share in zip(axis.classes, axis.shares(), strict=True))
        balances.append(AxisBalance(axis.name, rows, sum(n for _, n, _ in rows)))
    return balances


def measure_set(members: Sequence[Member], seen: Seen, axes: Sequence[Axis]) -> float:
    """The discrepancy of a set over the images that could be read on all axes; NaN when there is none."""
    target = Target(axes)
    cells = [tuple(seen.get(str(member), {}).get(axis.name, "") for axis in axes) for member in members]
    known = [target.cells.index(cell) for cell in cells if cell in target.cells]
    return float(target.discrepancies(target.count(np.array(known)))) if known else float("nan")
