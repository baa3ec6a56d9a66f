"""A review database: SQLite in a file, or PostgreSQL by URL. A vote that was acknowledged is on the disk."""

import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from popalign_core.errors import InputError, StoreError
from storage.reviews.review_engine import open_engine
from storage.reviews.review_tables import Asked, ChainStep, Classes, Picture, Rater, Study, StudyPair, Vote

Row = Mapping[str, Any]
_PICTURES_KEPT, _STUDIES_KEPT, _PLANS_KEPT, _PAIRS_KEPT = 1000, 100, 1000, 5000
"""Kept in memory; an image as shown has up to 100 kB."""

_RATER = select(Rater.study, Rater.is_closed).where(Rater.rater_id == bindparam("rater_id"))
_ANSWERED = (
    select(Vote.asked_id).join(Asked, Asked.asked_id == Vote.asked_id).where(Asked.rater_id == bindparam("rater_id"))
)
_VOTE = insert(Vote)

Plan = Callable[[Sequence[StudyPair], Mapping[str, int], int], Iterable[Row]]
"""From pairs, pair id -> raters it has or will have, and the rater's number: rows of `Asked` in order."""


@dataclass(frozen=True)
class Turn:
    """What a rater sees next.

    Attributes:
        asked: The question.
        pair: What is judged.
        n_done: Questions answered.
        n_all: Questions of the plan.
        ahead: Ids of the images of the next pair.
        last: The question answered before; None at the start.
    """

    asked: Asked
    pair: StudyPair
    n_done: int
    n_all: int
    ahead: Sequence[str]
    last: Asked | None


class ReviewDatabase:
    """Studies and votes.

    Args:
        url: As SQLAlchemy spells it, such as `sqlite:///reviews.sqlite` or `postgresql://user@host/name`. Tables that
            are not there are made.
        create: Whether SQLite's file is made where there is none.

    Raises:
        StoreError: When it cannot be opened.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self._engine = open_engine(url, create=create)
        weakref.finalize(self, self._engine.dispose)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)
        # What never changes is read once: a page then asks for a rater's votes, and for nothing else.
        self.picture = lru_cache(_PICTURES_KEPT)(self._read_picture)
        self.cached_study = lru_cache(_STUDIES_KEPT)(self.study)
        self._plan = lru_cache(_PLANS_KEPT)(self._read_plan)
        self._pair = lru_cache(_PAIRS_KEPT)(self._read_pair)

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def create_study(
        self, study: Row, pictures: Iterable[tuple[str, bytes]], pairs: Iterable[Row], classes: Iterable[Row] = ()
    ) -> None:
        """Store a study whole, or not at all.

        Args:
            study: Columns of `Study`; the secret is made here.
            pictures: Id and bytes, one at a time.
            pairs: Columns of `StudyPair`.
            classes: Columns of `Classes`.

        Raises:
            InputError: When there is a study of that name.
        """
        name = study["name"]
        with self.begin(f"there is a study {name!r} already; choose another name") as session:
            session.add(Study(**study, secret=secrets.token_hex(32)))
            session.flush()
            for picture_id, data in pictures:
                session.add(Picture(picture_id=picture_id, study=name, data=data))
                session.flush()
                session.expunge_all()  # the images of a study need not fit into memory
            session.add_all(StudyPair(**pair, study=name) for pair in pairs)
            session.flush()
            session.add_all(Classes(**row) for row in classes)

    def studies(self) -> list[Study]:
        """All of them, by name."""
        with self.begin() as session:
            return list(session.scalars(select(Study).order_by(Study.name)))

    def study(self, name: str) -> Study:
        """One study.

        Raises:
            InputError: When there is none of that name.
        """
        with self.begin() as session:
            found = session.get(Study, name)
        if found is None:
            known = ", ".join(study.name for study in self.studies()) or "none"
            raise InputError(f"there is no study {name!r}; there are: {known}")
        return found

    def set_instructions(self, name: str, text: str) -> None:
        """Change what raters read.

        Raises:
            InputError: When there are votes or steps already: they were given under the instructions as they are.
        """
        stepped = (
            select(ChainStep.asked_id)
            .join(Asked, Asked.asked_id == ChainStep.asked_id)
            .join(Rater)
            .where(Rater.study == name)
        )
        with self.begin() as session:
            is_begun = session.scalar(stepped.limit(1)) is not None
        if is_begun or self.count_votes(name):
            raise InputError(f"study {name!r} has votes under its instructions as they are; make a study of its own")
        with self.begin() as session:
            session.execute(update(Study).where(Study.name == name).values(instructions=text))

    def _read_picture(self, study: str, picture_id: str) -> bytes | None:
        """The bytes of an image of a study, as shown; None when it has none of that id."""
        asked = select(Picture.data).where(Picture.picture_id == picture_id, Picture.study == study)
        with self.begin() as session:
            return session.scalar(asked)

    def invite(self, name: str, plan: Plan) -> Rater:
        """Add a rater with a plan; concurrent invitations wait, so that no pair gets too many."""
        with self.begin() as session:
            # This comes first: it locks the study on either database.
            count = update(Study).where(Study.name == name).values(n_invited=Study.n_invited + 1)
            number = session.scalar(count.returning(Study.n_invited))
            pairs = list(session.scalars(select(StudyPair).where(StudyPair.study == name).order_by(StudyPair.pair_id)))
            rater = Rater(rater_id=secrets.token_hex(8), study=name, number=number, is_closed=False)
            rows = list(plan(pairs, _coverage(session, name), rater.number))
            session.add(rater)
            session.flush()
            session.add_all(
                Asked(**row, rater_id=rater.rater_id, position=position) for position, row in enumerate(rows)
            )
        return rater

    def close_rater(self, name: str, number: int) -> None:
        """End a rater's part: what they answered stays, what they did not is for the next who is invited.

        Raises:
            InputError: When there is no such rater.
        """
        close = update(Rater).where(Rater.study == name, Rater.number == number).values(is_closed=True)
        with self.begin() as session:
            if session.scalar(close.returning(Rater.number)) is None:
                raise InputError(f"study {name!r} has no rater {number}; `popalign study links {name}` lists them")

    def find_rater(self, rater_id: str) -> tuple[str, bool] | None:
        """The study of somebody who was invited, and whether their part has ended; None for anybody else."""
        with self._connect() as connection:
            row = connection.execute(_RATER, {"rater_id": rater_id}).first()
        return None if row is None else (row.study, row.is_closed)

    def raters(self, name: str) -> list[tuple[Rater, int, int]]:
        """The raters of a study with the number of questions answered and asked."""
        counts = (
            select(Rater, func.count(Vote.asked_id), func.count(Asked.asked_id))
            .join(Asked, Asked.rater_id == Rater.rater_id)
            .outerjoin(Vote, Vote.asked_id == Asked.asked_id)
            .where(Rater.study == name)
            .group_by(Rater.rater_id)
            .order_by(Rater.number)
        )
        with self.begin() as session:
            return [(rater, n_done, n_all) for rater, n_done, n_all in session.execute(counts)]

    def turn(self, rater_id: str) -> Turn | None:
        """The first question without a vote; None when the rater has answered all."""
        plan, answered = self._plan(rater_id), self._answered(rater_id)
        left = [asked for asked in plan if asked.asked_id not in answered]
        if not left:
            return None
        ahead = next((asked.pair_id for asked in left if asked.pair_id != left[0].pair_id), None)
        pictures = [] if ahead is None else [*self._pair(ahead).pictures_a, *self._pair(ahead).pictures_b]
        last = next((asked for asked in reversed(plan) if asked.asked_id in answered), None)
        return Turn(left[0], self._pair(left[0].pair_id), len(answered), len(plan), pictures, last)

    def vote(self, rater_id: str, asked_id: int, choice: str, seconds: float) -> bool:
        """Store an answer.

        Returns:
            Whether it is what the database holds now; False when the question has another answer already.

        Raises:
            InputError: When the question is not this rater's.
        """
        if asked_id not in {asked.asked_id for asked in self._plan(rater_id)}:
            raise InputError(f"question {asked_id} is not one of this rater's; open the page again")
        try:
            with self._connect() as connection:
                connection.execute(_VOTE, {"asked_id": asked_id, "choice": choice, "seconds": seconds})
        except IntegrityError:
            with self.begin() as session:
                held = session.get(Vote, asked_id)
            if held is None:  # not a second vote, but a wrong one
                raise
            return held.choice == choice
        return True

    def last_vote(self, rater_id: str) -> Asked | None:
        """The question a rater answered last."""
        answered = self._answered(rater_id)
        return next((asked for asked in reversed(self._plan(rater_id)) if asked.asked_id in answered), None)

    def undo(self, rater_id: str, asked_id: int) -> bool:
        """Take an answer back if it is the rater's last; whether it was."""
        last = self.last_vote(rater_id)
        if last is None or last.asked_id != asked_id:
            return False
        with self.begin() as session:
            session.execute(delete(Vote).where(Vote.asked_id == asked_id))
        return True

    def count_votes(self, name: str) -> int:
        """Votes of a study, those on checks among them."""
        counted = select(func.count(Vote.asked_id)).join(Asked).join(StudyPair, StudyPair.pair_id == Asked.pair_id)
        with self.begin() as session:
            return int(session.scalar(counted.where(StudyPair.study == name)) or 0)

    def votes(self, name: str) -> list[tuple[Vote, Asked, StudyPair]]:
        """All votes of a study with what they are about, by rater and place in the plan."""
        rows = (
            select(Vote, Asked, StudyPair)
            .join(Asked, Asked.asked_id == Vote.asked_id)
            .join(StudyPair, StudyPair.pair_id == Asked.pair_id)
            .where(StudyPair.study == name)
            .order_by(Asked.rater_id, Asked.position)
        )
        with self.begin() as session:
            return [(vote, asked, pair) for vote, asked, pair in session.execute(rows)]

    def coverage(self, name: str) -> dict[str, int]:
        """Pair id -> raters who have judged it wholly or in part, or still may; pairs without a rater are absent."""
        with self.begin() as session:
            return _coverage(session, name)

    def _read_plan(self, rater_id: str) -> list[Asked]:
        with self.begin() as session:
            return list(session.scalars(select(Asked).where(Asked.rater_id == rater_id).order_by(Asked.position)))

    def _read_pair(self, pair_id: str) -> StudyPair:
        with self.begin() as session:
            return session.get_one(StudyPair, pair_id)

    def _answered(self, rater_id: str) -> set[int]:
        with self._connect() as connection:
            return set(connection.scalars(_ANSWERED, {"rater_id": rater_id}))

    @contextmanager
    def begin(self, conflict: str = "") -> Iterator[Session]:
        """A transaction; what breaks a rule of the tables is a conflict, if one is named."""
        try:
            with _database_errors(), self._sessions.begin() as session:
                yield session
        except IntegrityError as error:
            if conflict:
                raise InputError(conflict) from error
            raise

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        """A transaction without objects: what every page needs goes this way, in a third of the time."""
        with _database_errors(), self._engine.begin() as connection:
            yield connection


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        raise StoreError(f"the review database does not answer ({error}); fix it, then try again") from error


def _coverage(session: Session, name: str) -> dict[str, int]:
    counts = (
        select(Asked.pair_id, func.count(Asked.rater_id.distinct()))
        .join(Rater, Rater.rater_id == Asked.rater_id)
        .outerjoin(Vote, Vote.asked_id == Asked.asked_id)
        .where(Rater.study == name, Vote.asked_id.is_not(None) | ~Rater.is_closed)
        .group_by(Asked.pair_id)
    )
    return {row[0]: row[1] for row in session.execute(counts)}
