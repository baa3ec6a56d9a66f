"""The leaderboard: one row a metric of every checkpoint ever evaluated, in `<root>/leaderboard.parquet`."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from filelock import FileLock

from storage.roots import Root

FILE = "leaderboard.parquet"
LOCK = ".leaderboard.lock"

KEY = ["model_hash", "protocol", "system", "benchmark", "metric", "axis", "scorer"]
"""What makes a row unique: the weights, how they were evaluated, and what was measured."""


def read_leaderboard(root: str) -> pd.DataFrame:
    """All rows, oldest first: checkpoint, model_hash, protocol and the columns of `metrics`; empty at first."""
    return _read(Root(root))


def append_leaderboard(root: str, rows: pd.DataFrame) -> None:
    """Add rows; those already there stay as they are. Readers see the old table or the new one, never a part."""
    place = Root(root)
    with _alone(place):
        known = _read(place)
        frame = pd.concat([known, rows], ignore_index=True) if len(known) else rows
        place.write(FILE, frame.drop_duplicates(KEY, keep="first").to_parquet(index=False))


def _read(place: Root) -> pd.DataFrame:
    content = place.read(FILE)
    return pd.DataFrame(columns=["checkpoint", *KEY]) if content is None else pd.read_parquet(io.BytesIO(content))


@contextmanager
def _alone(place: Root) -> Iterator[None]:
    """Keep other processes of this machine out; object stores rely on the deployment's concurrency limit of 1."""
    if not place.local:
        yield
        return
    with FileLock(Path(place.at(LOCK))):
        yield
