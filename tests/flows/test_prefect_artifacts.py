"""What Prefect shows: names from outside break no table."""

from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from flows.prefect_artifacts import leaderboard_markdown, metrics_markdown, report_description, report_url
from popalign_core.config import RuntimeConfig

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


@pytest.mark.parametrize(
    ("runtime", "url", "command"),
    [
        ({"root": "/a/b c"}, "http://127.0.0.1:8710/runs/mine/report.html", "popalign serve --root '/a/b c'"),
        (
            {"root": "s3://bucket/x"},
            "http://127.0.0.1:8710/runs/mine/report.html",
            "popalign serve --root s3://bucket/x",
        ),
        (
            {"root": "/a", "pages_url": "http://localhost:9000/"},
            "http://localhost:9000/runs/mine/report.html",
            "popalign serve --root /a --port 9000",
        ),
        (
            {"root": "/a", "pages_url": "https://pages.example/lab"},
            "https://pages.example/lab/runs/mine/report.html",
            "popalign serve --root /a",
        ),
        (
            {"root": "sftp://me:hunter2@host/x"},
            "http://127.0.0.1:8710/runs/mine/report.html",
            "popalign serve --root 'sftp://me:***@host/x'",
        ),
    ],
)
def test_a_report_has_an_address_and_the_command_that_shows_it(runtime: dict[str, str], url: str, command: str) -> None:
    given = RuntimeConfig.model_validate(runtime)
    assert report_url(given, "mine") == url
    assert report_description(given) == f"`{command}` shows it."


def test_a_relative_root_is_named_so_that_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report_description(RuntimeConfig()) == f"`popalign serve --root {tmp_path}/artifacts` shows it."


@pytest.mark.parametrize("url", ["", "127.0.0.1:8710", "file:///x", "javascript:alert(1)"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match=r"write it as http://HOST:PORT|at least 1 character"):
        RuntimeConfig(pages_url=url)
