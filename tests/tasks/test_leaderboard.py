"""The leaderboard: appended to, never rewritten, one row a metric and checkpoint."""

from pathlib import Path

import pandas as pd

from tasks.leaderboard import append_leaderboard, read_leaderboard


def rows(model_hash: str, value: float) -> pd.DataFrame:
    identity = {"checkpoint": f"name-{model_hash}", "model_hash": model_hash, "protocol": "p"}
    metric = {"system": "checkpoint", "benchmark": "neutral", "metric": "discrepancy_pooled", "axis": "gender"}
    return pd.DataFrame([identity | metric | {"value": value, "ci_low": None, "scorer": "s@1"}]).astype(
        {"ci_low": "float64"}
    )


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


def test_any_fsspec_root_will_do() -> None:
    append_leaderboard("memory://board-test", rows("a", 0.4))
    append_leaderboard("memory://board-test", rows("b", 0.2))
    assert read_leaderboard("memory://board-test")["model_hash"].tolist() == ["a", "b"]
