"""Chains of a review database: every step that was acknowledged is there once, whatever is sent twice or late."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from popalign_core.errors import InputError
from storage.reviews.review_tables import Asked, ChainStep, Classes, Rater, StudyPair, Vote
from storage.reviews.votes import ReviewDatabase


def read_steps(database: ReviewDatabase, asked_id: int) -> list[ChainStep]:
    """The steps of one chain, in order."""
    with database.begin() as session:
        return list(session.scalars(select(ChainStep).where(ChainStep.asked_id == asked_id).order_by(ChainStep.number)))


def read_all_steps(database: ReviewDatabase, name: str) -> dict[int, list[ChainStep]]:
    """The steps of every chain of a study, in order; chains without one are absent."""
    steps = (
        select(ChainStep)
        .join(Asked, Asked.asked_id == ChainStep.asked_id)
        .join(Rater, Rater.rater_id == Asked.rater_id)
        .where(Rater.study == name)
        .order_by(ChainStep.asked_id, ChainStep.number)
    )
    found: dict[int, list[ChainStep]] = {}
    with database.begin() as session:
        for step in session.scalars(steps):
            found.setdefault(step.asked_id, []).append(step)
    return found


def read_asked(database: ReviewDatabase, name: str) -> list[tuple[Asked, StudyPair]]:
    """All questions of a study's plans, by rater and place, answered or not."""
    rows = (
        select(Asked, StudyPair)
        .join(StudyPair, StudyPair.pair_id == Asked.pair_id)
        .where(StudyPair.study == name)
        .order_by(Asked.rater_id, Asked.position)
    )
    with database.begin() as session:
        return [(asked, pair) for asked, pair in session.execute(rows)]


def read_classes(database: ReviewDatabase, pair_id: str) -> dict[str, dict[str, str]]:
    """Image id -> axis -> class, of the images of one set to curate."""
    with database.begin() as session:
        found = session.get(Classes, pair_id)
        return {} if found is None else found.seen


def read_all_classes(database: ReviewDatabase, name: str) -> dict[str, dict[str, dict[str, str]]]:
    """Id of the pair -> as `read_classes`, of a whole study."""
    rows = select(Classes).join(StudyPair, StudyPair.pair_id == Classes.pair_id).where(StudyPair.study == name)
    with database.begin() as session:
        return {row.pair_id: row.seen for row in session.scalars(rows)}


def add_step(database: ReviewDatabase, rater_id: str, step: ChainStep) -> bool:
    """Store the next step of a chain.

    Returns:
        Whether it is what the database holds now; False when that place has another answer, or is not the next one,
        or the chain has ended.

    Raises:
        InputError: When the chain is not this rater's.
    """
    with _alone(database, rater_id, step.asked_id) as session:
        held = session.get(ChainStep, (step.asked_id, step.number))
        if held is not None:
            return held.is_accepted == step.is_accepted
        if step.number != _count(session, step.asked_id) or session.get(Vote, step.asked_id) is not None:
            return False
        session.add(step)
        return True


def drop_step(database: ReviewDatabase, rater_id: str, asked_id: int, number: int) -> bool:
    """Take a step back if it is the last of a chain that has not ended; whether it was."""
    with _alone(database, rater_id, asked_id) as session:
        held = session.get(ChainStep, (asked_id, number))
        is_last = number == _count(session, asked_id) - 1
        if held is None or not is_last or session.get(Vote, asked_id) is not None:
            return False
        session.delete(held)
        return True


def end_chain(
    database: ReviewDatabase, rater_id: str, asked_id: int, n_steps: int, choice: str, seconds: float
) -> bool:
    """End a chain where its curator saw it, after `n_steps`.

    Returns:
        Whether it has ended so; False when there are other steps than those, or it ended otherwise.

    Raises:
        InputError: When the chain is not this rater's.
    """
    with _alone(database, rater_id, asked_id) as session:
        held = session.get(Vote, asked_id)
        if held is not None or _count(session, asked_id) != n_steps:
            return held is not None and held.choice == choice and _count(session, asked_id) == n_steps
        session.add(Vote(asked_id=asked_id, choice=choice, seconds=seconds))
        return True


@contextmanager
def _alone(database: ReviewDatabase, rater_id: str, asked_id: int) -> Iterator[Session]:
    """A transaction in which nothing else of this rater's happens: the first statement locks on either database."""
    with database.begin() as session:
        session.execute(update(Rater).where(Rater.rater_id == rater_id).values(is_closed=Rater.is_closed))
        asked = session.get(Asked, asked_id)
        if asked is None or asked.rater_id != rater_id:
            raise InputError(f"set {asked_id} is not one of this curator's; open the page again")
        yield session


def _count(session: Session, asked_id: int) -> int:
    return int(session.scalar(select(func.count(ChainStep.number)).where(ChainStep.asked_id == asked_id)) or 0)
