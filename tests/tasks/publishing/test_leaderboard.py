"""The leaderboard: appended to, never rewritten, one row a metric and checkpoint."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from popalign_core.errors import StoreError
from tasks.publishing.leaderboard import append_leaderboard, read_leaderboard


def rows(model_hash: str, value: float) -> pd.DataFrame:
    identity = {"checkpoint": f"name-{model_hash}", "model_hash": model_hash, "protocol": "p"}
    metric = {"system": "checkpoint", "benchmark": "neutral", "metric": "discrepancy_pooled", "axis": "gender"}
    numbers = {"value": value, "ci_low": None, "ci_high": None, "n": 100, "floor": 0.05, "scorer": "s@1", "note": ""}
    return pd.DataFrame([identity | metric | numbers]).astype({"ci_low": "float64", "ci_high": "float64"})


def test_an_absent_leaderboard_is_empty(tmp_path: Path) -> None:
    board = read_leaderboard(str(tmp_path))
    assert board.empty
    assert {"checkpoint", "model_hash", "protocol"} <= set(board.columns)


def test_rows_are_appended_and_known_ones_stay(tmp_path: Path) -> None:
    append_leaderboard(str(tmp_path), rows("a", 0.4))
    append_leaderboard(str(tmp_path), rows("b", 0.2))
    append_leaderboard(str(tmp_path), rows("a", 0.9))
    board = read_leaderboard(str(tmp_path))
    assert list(zip(board["model_hash"], board["value"], strict=True)) == [("a", 0.4), ("b", 0.2)]


def test_a_damaged_leaderboard_is_named(tmp_path: Path) -> None:
    append_leaderboard(str(tmp_path), rows("a", 0.4))
    path = tmp_path / "leaderboard.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"leaderboard\.parquet is damaged: .*delete it"):
        append_leaderboard(str(tmp_path), rows("b", 0.2))


def test_rows_whose_page_cannot_be_written_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "leaderboard.html").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*leaderboard\.html"):
        append_leaderboard(str(tmp_path), rows("a", 0.4))
    assert read_leaderboard(str(tmp_path)).empty
    (tmp_path / "leaderboard.html").rmdir()
    append_leaderboard(str(tmp_path), rows("a", 0.4))
    assert "name-a" in (tmp_path / "leaderboard.html").read_text(encoding="utf-8")


def test_any_fsspec_root_will_do() -> None:
    append_leaderboard("memory://board-test", rows("a", 0.4))
    append_leaderboard("memory://board-test", rows("b", 0.2))
    assert read_leaderboard("memory://board-test")["model_hash"].tolist() == ["a", "b"]


def test_rows_carry_their_time_and_older_ones_may_lack_it(tmp_path: Path) -> None:
    rows("old", 0.4).to_parquet(tmp_path / "leaderboard.parquet", index=False)
    append_leaderboard(str(tmp_path), rows("new", 0.2))
    before, after = read_leaderboard(str(tmp_path))["evaluated_at"]
    assert pd.isna(before)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(after)) < timedelta(minutes=1)


def test_the_page_beside_it_has_every_checkpoint(tmp_path: Path) -> None:
    append_leaderboard(str(tmp_path), rows("a", 0.4))
    append_leaderboard(str(tmp_path), rows("b", 0.2))
    page = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert page.index("2 name-b") < page.index("1 name-a")
    assert "<b>0.400</b>" in page
