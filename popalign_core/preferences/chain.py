"""The human-in-the-loop Markov chain (PopAlign, Appendix B): replace an image, keep it if a judge prefers the new set.

    propose -> show the judge `after(...)` -> accept or undo -> ... until the judge is content

Nothing here knows who judges: a person's answers drive the same functions as `TargetJudge`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from popalign_core.errors import InputError
from popalign_core.preferences.target import Target, TargetOf

Member = int | str
"""An image, by its id or its number."""

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Chain:
    """Where a chain stands; every step makes a new one.

    Attributes:
        members: Ids of the images of the set.
        spare: Ids of images that may come in.
        n_accepted: Steps that the judge kept.
        n_undone: Steps that went back.
    """

    members: tuple[Member, ...]
    spare: tuple[Member, ...]
    n_accepted: int = 0
    n_undone: int = 0


@dataclass(frozen=True)
class Proposal:
    """One step: the member at `slot` makes room for the image at `replacement` among the spare ones."""

    slot: int
    replacement: int


class Judge(Protocol):
    """A person, or a classifier with a target."""

    def prefers(self, after: Sequence[Member], before: Sequence[Member]) -> bool:
        """Whether the set after a step is nearer the target than the one before."""

    def is_content(self, members: Sequence[Member]) -> bool:
        """Whether the set needs no further step."""


class TargetJudge:
    """The classifier's readings and the target distribution in place of a person.

    Args:
        cells: Image id -> number of its cell.
        target: The wanted population.
        of: Whether the cells' shares count, or each axis's alone.
    """

    def __init__(self, cells: Mapping[Member, int], target: Target, of: TargetOf) -> None:
        def measure(members: tuple[Member, ...]) -> float:
            counts = target.count(np.array([cells[member] for member in members]))
            return float(target.distances(counts, of))

        # the set before a step was the one after an earlier one
        self._distance = lru_cache(maxsize=4)(measure)
        self._nearest = lru_cache(maxsize=4)(lambda n: target.nearest(n, of))

    def prefers(self, after: Sequence[Member], before: Sequence[Member]) -> bool:
        """Whether the distance falls."""
        return self._distance(tuple(after)) < self._distance(tuple(before)) - _ROUNDING

    def is_content(self, members: Sequence[Member]) -> bool:
        """Whether no set of this size can be nearer."""
        return self._distance(tuple(members)) <= self._nearest(len(members)) + _ROUNDING


def propose(chain: Chain, generator: np.random.Generator) -> Proposal:
    """A random member makes room for a random spare image.

    Raises:
        InputError: When there is no member or no spare image.
    """
    if not chain.members or not chain.spare:
        raise InputError(
            f"a chain of {len(chain.members)} member(s) and {len(chain.spare)} spare image(s) has no step to take; "
            "give it both"
        )
    return Proposal(int(generator.integers(len(chain.members))), int(generator.integers(len(chain.spare))))


def after(chain: Chain, proposal: Proposal) -> tuple[Member, ...]:
    """The members as the judge sees them if the proposal is accepted."""
    new = chain.spare[proposal.replacement]
    return (*chain.members[: proposal.slot], new, *chain.members[proposal.slot + 1 :])


def accept(chain: Chain, proposal: Proposal) -> Chain:
    """The proposal's image is a member; the one it replaced is spare."""
    old, where = chain.members[proposal.slot], proposal.replacement
    spare = (*chain.spare[:where], old, *chain.spare[where + 1 :])
    return replace(chain, members=after(chain, proposal), spare=spare, n_accepted=chain.n_accepted + 1)


def undo_proposal(chain: Chain) -> Chain:
    """The set as it was; only the step is counted."""
    return replace(chain, n_undone=chain.n_undone + 1)


def run_chain(chain: Chain, judge: Judge, generator: np.random.Generator, max_steps: int) -> Chain:
    """Step until the judge is content, there is nothing to step to, or after `max_steps`."""
    for _ in range(max_steps):
        if not chain.spare or judge.is_content(chain.members):
            break
        proposal = propose(chain, generator)
        better = judge.prefers(after(chain, proposal), chain.members)
        chain = accept(chain, proposal) if better else undo_proposal(chain)
    return chain
