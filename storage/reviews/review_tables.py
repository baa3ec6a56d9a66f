"""The tables of a review database: studies, their images and pairs, questions to raters, and votes."""

from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

CHOICES = ("first", "tie", "second")
"""What a rater can answer about two sets, in terms of the page."""

ANSWER_PREFIX = "="
"""Before any other answer: a class that was seen, or how a chain ended."""

DONE, GIVEN_UP = f"{ANSWER_PREFIX}done", f"{ANSWER_PREFIX}given up"
"""How a chain ended."""

_ID = String(32)
_NAME = String(64)


class Base(DeclarativeBase):
    """Root of the tables."""


class Study(Base):
    """Two systems judged by people, images labelled or sets curated, as `config` says; then there are no systems.

    `secret` signs its raters' links and hides who they are in the export; `n_invited` counts its raters.
    """

    __tablename__ = "studies"
    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    system_a: Mapped[str] = mapped_column(Text)
    system_b: Mapped[str] = mapped_column(Text)
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    source: Mapped[dict[str, Any]] = mapped_column(JSON)
    instructions: Mapped[str] = mapped_column(Text)
    secret: Mapped[str] = mapped_column(String(64))
    n_invited: Mapped[int] = mapped_column(default=0)


class Picture(Base):
    """An image as it is shown: its id is all that a page knows of it."""

    __tablename__ = "pictures"
    picture_id: Mapped[str] = mapped_column(_ID, primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("studies.name"), index=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class StudyPair(Base):
    """Two sets of images for one prompt; `checks` names the question whose answer is known to be A.

    Of an image to label, A alone; of a set to curate, A is what it starts from and B are the candidates.
    """

    __tablename__ = "pairs"
    pair_id: Mapped[str] = mapped_column(_ID, primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("studies.name"), index=True)
    prompt_id: Mapped[str] = mapped_column(_ID)
    prompt: Mapped[str] = mapped_column(Text)
    checks: Mapped[str] = mapped_column(_NAME, default="")
    images_a: Mapped[list[str]] = mapped_column(JSON)
    images_b: Mapped[list[str]] = mapped_column(JSON)
    pictures_a: Mapped[list[str]] = mapped_column(JSON)
    pictures_b: Mapped[list[str]] = mapped_column(JSON)


class Classes(Base):
    """What a classifier read in the images of a set to curate: image id -> axis -> class; what it could not read is
    absent.
    """

    __tablename__ = "classes"
    pair_id: Mapped[str] = mapped_column(ForeignKey("pairs.pair_id"), primary_key=True)
    seen: Mapped[dict[str, dict[str, str]]] = mapped_column(JSON)


class Rater(Base):
    """A person who was invited, without a name."""

    __tablename__ = "raters"
    rater_id: Mapped[str] = mapped_column(_ID, primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("studies.name"), index=True)
    number: Mapped[int]
    is_closed: Mapped[bool] = mapped_column(default=False)


class Asked(Base):
    """One question of a rater's plan; `first` is the side of the pair that stands first on the page."""

    __tablename__ = "asked"
    __table_args__ = (UniqueConstraint("rater_id", "position"), UniqueConstraint("rater_id", "pair_id", "question"))
    asked_id: Mapped[int] = mapped_column(primary_key=True)
    rater_id: Mapped[str] = mapped_column(ForeignKey("raters.rater_id"))
    position: Mapped[int]
    pair_id: Mapped[str] = mapped_column(ForeignKey("pairs.pair_id"), index=True)
    question: Mapped[str] = mapped_column(_NAME)
    first: Mapped[str] = mapped_column(String(1))


class Vote(Base):
    """An answer. Its key is the question's: no question is answered twice."""

    __tablename__ = "votes"
    __table_args__ = (
        CheckConstraint(f"choice in {CHOICES} or substr(choice, 1, 1) = '{ANSWER_PREFIX}'"),
        CheckConstraint("seconds >= 0"),
    )
    asked_id: Mapped[int] = mapped_column(ForeignKey("asked.asked_id"), primary_key=True, autoincrement=False)
    choice: Mapped[str] = mapped_column(_NAME)
    seconds: Mapped[float]


class ChainStep(Base):
    """A step of a chain: whether the image at `slot` made room for the spare one at `replacement`.

    Its key is its place in the chain: no step can be there twice.
    """

    __tablename__ = "steps"
    __table_args__ = (CheckConstraint("seconds >= 0"),)
    asked_id: Mapped[int] = mapped_column(ForeignKey("asked.asked_id"), primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    slot: Mapped[int]
    replacement: Mapped[int]
    is_accepted: Mapped[bool]
    seconds: Mapped[float]
