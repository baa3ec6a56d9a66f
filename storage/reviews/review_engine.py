"""Connections to a review database: SQLite in a file, or PostgreSQL."""

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from popalign_core.errors import StoreError
from storage.reviews.passwords import hide_password
from storage.reviews.review_tables import Base


def open_engine(url: str, *, create: bool = True) -> Engine:
    """An engine with all tables; those that are not there are made.

    Args:
        url: Of the database.
        create: Whether SQLite's file is made where there is none.

    Raises:
        StoreError: When the database cannot be opened, or is not there and must not be made.
    """
    try:
        engine = _engine(url, create=create)
        Base.metadata.create_all(engine)
    except (ArgumentError, ImportError, OSError, SQLAlchemyError) as error:
        raise StoreError(
            f"the review database {hide_password(url)!r} cannot be opened "
            f"({hide_password(url, str(error))}); give a URL such as "
            "sqlite:///reviews.sqlite, or postgresql://user@host/name after `pip install 'popalign[postgres]'`"
        ) from None  # the driver's error may hold the password
    return engine


def _engine(url: str, *, create: bool) -> Engine:
    parsed = make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and not parsed.database.startswith((":memory:", "file:")):
            if not create and not Path(parsed.database).exists():
                raise StoreError(
                    f"there are no studies: {parsed.database} is not there; make one with `popalign study create`, or "
                    "give the --root or --database that has some"
                )
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
