"""A review database: SQLite in a file, or PostgreSQL by URL. A vote that was acknowledged is on the disk."""

import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, delete, event, func, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from popalign_core.errors import InputError, StoreError
from storage.review_tables import Asked, Base, Pair, Picture, Rater, Study, Vote

Row = Mapping[str, Any]
Plan = Callable[[Sequence[Pair], Mapping[str, int], int], Iterable[Row]]
"""From pairs, pair id -> raters it has or will have, and the rater's number: rows of `Asked` in order."""


@dataclass(frozen=True)
class Turn:
    """What a rater sees next.

    Attributes:
        asked: The question.
        pair: What is judged.
        n_done: Questions answered.
        n_all: Questions of the plan.
        ahead: Ids of the pictures of the next pair.
    """

    asked: Asked
    pair: Pair
    n_done: int
    n_all: int
    ahead: Sequence[str]


class ReviewDatabase:
    """Studies and votes.

    Args:
        url: As SQLAlchemy spells it, such as `sqlite:///reviews.sqlite` or `postgresql://user@host/name`. Tables that
            are not there are made.

    Raises:
        StoreError: When it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = _engine(url)
            Base.metadata.create_all(self._engine)
        except (ArgumentError, ImportError, OSError, SQLAlchemyError) as error:
            raise StoreError(
                f"the review database {url!r} cannot be opened ({error}); give a URL such as "
                "sqlite:///reviews.sqlite, or postgresql://user@host/name after `pip install 'popalign[postgres]'`"
            ) from error
        weakref.finalize(self, self._engine.dispose)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def create_study(self, study: Row, pictures: Iterable[tuple[str, bytes]], pairs: Iterable[Row]) -> None:
        """Store a study whole, or not at all.

        Args:
            study: Columns of `Study`; the secret is made here.
            pictures: Id and bytes, one at a time.
            pairs: Columns of `Pair`.

        Raises:
            InputError: When there is a study of that name.
        """
        name = study["name"]
        with self._begin(f"there is a study {name!r} already; choose another name") as session:
            session.add(Study(**study, secret=secrets.token_hex(32)))
            session.flush()
            for picture_id, data in pictures:
                session.add(Picture(picture_id=picture_id, study=name, data=data))
                session.flush()
                session.expunge_all()  # the pictures of a study need not fit into memory
            session.add_all(Pair(**pair, study=name) for pair in pairs)

    def studies(self) -> list[Study]:
        """All of them, by name."""
        with self._begin() as session:
            return list(session.scalars(select(Study).order_by(Study.name)))

    def study(self, name: str) -> Study:
        """One study.

        Raises:
            InputError: When there is none of that name.
        """
        with self._begin() as session:
            found = session.get(Study, name)
        if found is None:
            known = ", ".join(study.name for study in self.studies()) or "none"
            raise InputError(f"there is no study {name!r}; there are: {known}")
        return found

    def set_instructions(self, name: str, text: str) -> None:
        """Change what raters read.

        Raises:
            InputError: When there are votes already: they were given under the instructions as they are.
        """
        if self.count_votes(name):
            raise InputError(f"study {name!r} has votes under its instructions as they are; make a study of its own")
        with self._begin() as session:
            session.execute(update(Study).where(Study.name == name).values(instructions=text))

    def picture(self, study: str, picture_id: str) -> bytes | None:
        """The bytes of a picture of a study."""
        asked = select(Picture.data).where(Picture.picture_id == picture_id, Picture.study == study)
        with self._begin() as session:
            return session.scalar(asked)

    def invite(self, name: str, plan: Plan) -> Rater:
        """Add a rater with a plan; whoever is invited at the same time waits, so that no pair gets too many."""
        with self._begin() as session:
            # This comes first: it locks the study on either database.
            count = update(Study).where(Study.name == name).values(n_invited=Study.n_invited + 1)
            number = session.scalar(count.returning(Study.n_invited))
            pairs = list(session.scalars(select(Pair).where(Pair.study == name).order_by(Pair.pair_id)))
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
        with self._begin() as session:
            if session.scalar(close.returning(Rater.number)) is None:
                raise InputError(f"study {name!r} has no rater {number}; `popalign study links {name}` lists them")

    def rater(self, rater_id: str) -> Rater | None:
        """Somebody who was invited."""
        with self._begin() as session:
            return session.get(Rater, rater_id)

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
        with self._begin() as session:
            return [(rater, n_done, n_all) for rater, n_done, n_all in session.execute(counts)]

    def turn(self, rater_id: str) -> Turn | None:
        """The first question without a vote; None when the rater has answered all."""
        plan = (
            select(Asked, Pair, Vote.asked_id)
            .join(Pair, Pair.pair_id == Asked.pair_id)
            .outerjoin(Vote, Vote.asked_id == Asked.asked_id)
            .where(Asked.rater_id == rater_id)
            .order_by(Asked.position)
        )
        mine = select(func.count(Asked.asked_id), func.count(Vote.asked_id)).outerjoin(Vote)
        with self._begin() as session:
            n_all, n_done = session.execute(mine.where(Asked.rater_id == rater_id)).one()
            # as many rows as questions about one pair, and one more, reach the pair after it
            rows = session.execute(plan.where(Vote.asked_id.is_(None)).limit(8)).all()
        if not rows:
            return None
        asked, pair = rows[0][0], rows[0][1]
        ahead = next((row[1] for row in rows if row[1].pair_id != pair.pair_id), None)
        return Turn(asked, pair, n_done, n_all, [*ahead.pictures_a, *ahead.pictures_b] if ahead else [])

    def vote(self, rater_id: str, asked_id: int, choice: str, seconds: float) -> bool:
        """Store an answer.

        Returns:
            Whether it is what the database holds now; False when the question has another answer already.

        Raises:
            InputError: When the question is not this rater's.
        """
        with self._begin() as session:
            asked = session.get(Asked, asked_id)
        if asked is None or asked.rater_id != rater_id:
            raise InputError(f"question {asked_id} is not one of this rater's; open the page again")
        try:
            with self._sessions.begin() as session:
                session.add(Vote(asked_id=asked_id, choice=choice, seconds=seconds))
        except IntegrityError:
            with self._begin() as session:
                held = session.get(Vote, asked_id)
            if held is None:  # not a second vote, but a wrong one
                raise
            return held.choice == choice
        return True

    def last_vote(self, rater_id: str) -> Asked | None:
        """The question a rater answered last."""
        mine = select(Asked).join(Vote, Vote.asked_id == Asked.asked_id).where(Asked.rater_id == rater_id)
        with self._begin() as session:
            return session.scalars(mine.order_by(Asked.position.desc()).limit(1)).first()

    def undo(self, rater_id: str, asked_id: int) -> bool:
        """Take an answer back if it is the rater's last; whether it was."""
        last = self.last_vote(rater_id)
        if last is None or last.asked_id != asked_id:
            return False
        with self._begin() as session:
            session.execute(delete(Vote).where(Vote.asked_id == asked_id))
        return True

    def count_votes(self, name: str) -> int:
        """Votes of a study, those on checks among them."""
        counted = select(func.count(Vote.asked_id)).join(Asked).join(Pair, Pair.pair_id == Asked.pair_id)
        with self._begin() as session:
            return int(session.scalar(counted.where(Pair.study == name)) or 0)

    def votes(self, name: str) -> list[tuple[Vote, Asked, Pair]]:
        """All votes of a study with what they are about, by rater and place in the plan."""
        rows = (
            select(Vote, Asked, Pair)
            .join(Asked, Asked.asked_id == Vote.asked_id)
            .join(Pair, Pair.pair_id == Asked.pair_id)
            .where(Pair.study == name)
            .order_by(Asked.rater_id, Asked.position)
        )
        with self._begin() as session:
            return [(vote, asked, pair) for vote, asked, pair in session.execute(rows)]

    def coverage(self, name: str) -> dict[str, int]:
        """Pair id -> raters who have judged it wholly or in part, or still may; pairs nobody has are absent."""
        with self._begin() as session:
            return _coverage(session, name)

    @contextmanager
    def _begin(self, conflict: str = "") -> Iterator[Session]:
        """A transaction; the database's errors as ours."""
        try:
            with self._sessions.begin() as session:
                yield session
        except IntegrityError as error:
            if conflict:
                raise InputError(conflict) from error
            raise
        except SQLAlchemyError as error:
            raise StoreError(f"the review database does not answer ({error}); see to it, then try again") from error


def _coverage(session: Session, name: str) -> dict[str, int]:
    counts = (
        select(Asked.pair_id, func.count(Asked.rater_id.distinct()))
        .join(Rater, Rater.rater_id == Asked.rater_id)
        .outerjoin(Vote, Vote.asked_id == Asked.asked_id)
        .where(Rater.study == name, Vote.asked_id.is_not(None) | ~Rater.is_closed)
        .group_by(Asked.pair_id)
    )
    return {row[0]: row[1] for row in session.execute(counts)}


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and not parsed.database.startswith((":memory:", "file:")):
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            Path(parsed.database).touch(mode=0o600)  # what signs the raters' links is in it
        event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, record: object) -> None:
    """Readers beside one writer, who waits for its turn; a commit is on the disk even if the power fails."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=15000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
