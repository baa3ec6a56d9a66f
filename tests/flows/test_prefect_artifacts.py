"""What Prefect shows: names from outside break no table."""

import pandas as pd

from flows.prefect_artifacts import leaderboard_markdown, metrics_markdown

ROWS = pd.DataFrame(
    {
        "system": ["a|b", "plain"],
        "benchmark": "neutral",
        "metric": "recall",
        "axis": "who|m",
        "value": [0.5, float("nan")],
        "ci_low": [0.25, float("nan")],
        "ci_high": [0.75, float("nan")],
    }
)


def test_a_bar_in_a_name_is_no_column() -> None:
    assert metrics_markdown(ROWS) == (
        "| benchmark | metric | axis | a\\|b | plain |\n"
        "|---|---|---|---|---|\n"
        "| neutral | recall | who\\|m | 0.500 (0.250 to 0.750) | not measured |\n"
    )


def test_a_checkpoint_is_named_with_its_hash() -> None:
    board = ROWS.assign(checkpoint="mine|<b>", model_hash="0123456789abcdef", system="checkpoint")
    header = leaderboard_markdown(board.head(1)).splitlines()[0]
    assert header == "| benchmark | metric | axis | mine\\|&lt;b&gt; 01234567 |"
