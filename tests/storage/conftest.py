import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from storage.store import ArtifactRef, Store

REPOSITORY = Path(__file__).resolve().parents[2]

PAYLOAD: dict[str, Any] = {"stage": "scores", "version": "1", "config": {"scorer": "clip"}, "inputs": {}}

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def payload() -> dict[str, Any]:
    return PAYLOAD


@pytest.fixture
def ref(store: Store) -> ArtifactRef:
    return ArtifactRef("scores", store.key("scores", "1", {"scorer": "clip"}, {}))


@pytest.fixture
def scores() -> pd.DataFrame:
    return pd.DataFrame(
        {"image_id": ["a", "b"], "scorer": "clip", "version": "1", "unit": "points", "value": [0.25, 0.5]}
    )


@pytest.fixture
def published(store: Store, ref: ArtifactRef, scores: pd.DataFrame) -> ArtifactRef:
    """An artifact with a table in two shards, a folder, and a file beside them."""
    with store.build(ref, PAYLOAD) as build:
        for shard in (0, 1):
            build.write_table("scores", scores.assign(value=scores["value"] + shard), shard=shard)
            build.mark_shard(shard, {"images": len(scores)})
        (build.folder / "model").mkdir()
        (build.folder / "model" / "weights.bin").write_bytes(b"weights")
        (build.folder / "notes.txt").write_text("notes", encoding="utf-8")
    return ref


@pytest.fixture
def spawn() -> Spawn:
    """Start a real process that runs some Python; it sees this repository and nothing on stdin."""

    def start(code: str, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            **options,
        )

    return start
