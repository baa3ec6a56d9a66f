"""The Markov chain of Appendix B: one image at a time, kept or undone as the judge says."""

from collections.abc import Sequence

import numpy as np
import pytest
from set_worlds import GENDER

from popalign_core.errors import InputError
from popalign_core.preferences.chain import (
    Chain,
    Member,
    Proposal,
    TargetJudge,
    accept,
    after,
    propose,
    run_chain,
    undo_proposal,
)
from popalign_core.preferences.target import Target

CHAIN = Chain(members=("a", "b", "c"), spare=("x", "y"))


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_an_accepted_step_swaps_two_images() -> None:
    step = Proposal(slot=1, replacement=0)
    assert after(CHAIN, step) == ("a", "x", "c")
    assert accept(CHAIN, step) == Chain(("a", "x", "c"), ("b", "y"), n_accepted=1)


def test_an_undone_step_leaves_the_set_and_is_counted() -> None:
    assert undo_proposal(undo_proposal(CHAIN)) == Chain(("a", "b", "c"), ("x", "y"), n_undone=2)


def test_every_member_and_every_spare_image_is_proposed_and_a_seed_repeats_it() -> None:
    numbers = generator()
    steps = [propose(CHAIN, numbers) for _ in range(100)]
    assert {(step.slot, step.replacement) for step in steps} == {(slot, new) for slot in range(3) for new in range(2)}
    numbers = generator()
    assert [propose(CHAIN, numbers) for _ in range(100)] == steps


@pytest.mark.parametrize(("chain", "what"), [(Chain(("a",), ()), "0 spare"), (Chain((), ("x",)), "0 member")])
def test_there_must_be_something_to_swap(chain: Chain, what: str) -> None:
    with pytest.raises(InputError, match=what):
        propose(chain, generator())


class Person:
    """Answers written down beforehand; looks at nothing."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)

    def prefers(self, after: Sequence[Member], before: Sequence[Member]) -> bool:
        assert len(set(after) - set(before)) == 1
        return self.answers.pop(0)

    def is_content(self, members: Sequence[Member]) -> bool:
        return not self.answers


def test_a_persons_answers_drive_the_same_chain() -> None:
    end = run_chain(CHAIN, Person(True, False, False, True), generator(), max_steps=50)
    assert (end.n_accepted, end.n_undone) == (2, 2)
    assert sorted([*end.members, *end.spare]) == ["a", "b", "c", "x", "y"]


def test_a_chain_ends_after_so_many_steps() -> None:
    end = run_chain(CHAIN, Person(*[False] * 9), generator(), max_steps=4)
    assert end == Chain(CHAIN.members, CHAIN.spare, n_undone=4)


def test_men_make_room_for_women_until_nothing_is_left_to_gain() -> None:
    """The paper's example: from a male-dominated set the judge accepts women and undoes men."""
    judge = TargetJudge({number: int(number >= 10) for number in range(20)}, Target((GENDER,)), "marginal")
    assert judge.prefers(after=(0, 10), before=(0, 1))
    assert not judge.prefers(after=(0, 1), before=(0, 10))
    assert not judge.prefers(after=(0, 1), before=(2, 3))
    end = run_chain(Chain(tuple(range(10)), tuple(range(10, 20))), judge, generator(), max_steps=500)
    assert sum(member >= 10 for member in end.members if isinstance(member, int)) == 5
    assert end.n_accepted == 5
    assert judge.is_content(end.members)
    assert run_chain(end, judge, generator(), max_steps=500) == end


def test_an_odd_set_is_as_near_as_it_can_be() -> None:
    """Five images cannot be half men; the judge is content with three of one kind."""
    judge = TargetJudge({0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}, Target((GENDER,)), "joint")
    assert judge.is_content((0, 1, 2, 3, 4))
    assert judge.is_content((0, 1, 3, 4, 5))
    assert not judge.is_content((0, 1, 2, 3))
