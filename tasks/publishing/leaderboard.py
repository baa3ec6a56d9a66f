"""The leaderboard: one row a metric of every checkpoint ever evaluated, as `<root>/leaderboard.parquet` and a page."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from filelock import FileLock

from popalign_core.errors import StoreError
from storage.roots import Root

FILE = "leaderboard.parquet"
PAGE = "leaderboard.html"
LOCK = ".leaderboard.lock"

KEY = ["model_hash", "protocol", "system", "benchmark", "metric", "axis", "scorer"]
"""What makes a row unique: the weights, how they were evaluated, and what was measured."""


def read_leaderboard(root: str) -> pd.DataFrame:
    """All rows, oldest first: checkpoint, model_hash, protocol, columns of `metrics`, evaluated_at; empty at first."""
    return _read(Root(root))


def append_leaderboard(root: str, rows: pd.DataFrame) -> None:
    """Add rows, with the time in `evaluated_at`; those already there stay as they are.

    Readers see the old table or the new one, never a part. `<root>/leaderboard.html` shows them all.
    """
    from popalign_core.report.leaderboard_page import EVALUATED_AT, build_leaderboard

    place = Root(root)
    place.check_writable()
    fresh = rows.assign(**{EVALUATED_AT: datetime.now(UTC).isoformat(timespec="seconds")})
    with _alone(place):
        known = _read(place)
        frame = pd.concat([known, fresh], ignore_index=True) if len(known) else fresh
        frame = frame.drop_duplicates(KEY, keep="first")
        # the table last: rows that are in it are not evaluated again, so a page that failed would stay old
        place.write(PAGE, build_leaderboard(frame).encode())
        place.write(FILE, frame.to_parquet(index=False))


def _read(place: Root) -> pd.DataFrame:
    content = place.read(FILE)
    if content is None:
        return pd.DataFrame(columns=["checkpoint", *KEY])
    try:
        return pd.read_parquet(io.BytesIO(content))
    except (ValueError, OSError) as error:  # Arrow's errors are one or the other
        raise StoreError(
            f"{place.at(FILE)} is damaged: {error}; delete it, and `popalign evaluate MODEL...` fills it from the store"
        ) from error


@contextmanager
def _alone(place: Root) -> Iterator[None]:
    """Keep other processes of this machine out; object stores rely on the deployment's concurrency limit of 1."""
    if not place.local:
        yield
        return
    with FileLock(Path(place.at(LOCK))):
        yield
