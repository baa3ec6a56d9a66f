"""All checkpoints through time as a page."""

import re
from typing import Any

import pandas as pd
import pytest

from popalign_core.errors import InputError
from popalign_core.report.leaderboard_page import build_leaderboard
from tests.support.pages import Page, dots, text_of

EVIL = '<script>alert("x")</script>'


def _board() -> pd.DataFrame:
    rows: list[Any] = []
    for model, protocol, when, value in (
        ("old", "p1", None, 0.6),
        ("new", "p1", "2026-11-21T10:00:00+00:00", 0.2),
        ("mid", "p1", "2026-11-20T10:00:00+00:00", 0.5),
        ("old", "p2", "2026-11-22T10:00:00+00:00", 0.1),
    ):
        common = {"checkpoint": f"ck-{model}", "model_hash": f"{model}-0123456789", "protocol": protocol}
        common |= {"system": "checkpoint", "benchmark": "neutral", "n": 100, "scorer": "s@1", "note": ""}
        common |= {"evaluated_at": when}
        ends = {"value": value, "ci_low": value - 0.05, "ci_high": value + 0.05, "floor": 0.02}
        rows += [
            common | ends | {"metric": "discrepancy_pooled", "axis": "gender"},
            common | ends | {"metric": "share:male", "axis": "gender"},
        ]
    return pd.DataFrame(rows)


def test_protocols_are_apart_and_the_newest_comes_first() -> None:
    html = build_leaderboard(_board())
    first, second = (html.index(f"Protocol {name}") for name in ("p2", "p1"))
    assert first < second
    names = re.findall(r'<th scope="row">(\d ck-\w+)', html)
    assert names == ["1 ck-old", "3 ck-new", "2 ck-mid", "1 ck-old"]
    assert "3 checkpoints" in html


def test_chart_and_table_hold_the_values_in_the_order_of_time() -> None:
    html = build_leaderboard(_board())
    part = html[html.index("Protocol p1") :]
    found = dots(part[: part.index("</svg>")])
    assert {name: kind for name, (_, _, kind) in found.items()} == {"1": "hollow", "2": "hollow", "3": "full"}
    unit = (found["3"][1] - found["1"][1]) / (0.2 - 0.6)
    assert found["2"][1] - found["1"][1] == pytest.approx(unit * (0.5 - 0.6), abs=0.2)
    text = text_of(part.replace("</t", " </t"))
    assert "3 ck-new new-0123 2026-11-21 10:00 0.200 0.150 to 0.250; fair 0.020" in text
    assert "1 ck-old old-0123 not recorded 0.600" in text
    assert "share" not in text.lower()


def test_one_checkpoint_needs_no_chart_and_rows_no_times() -> None:
    board = _board()
    html = build_leaderboard(board[board["protocol"] == "p2"].drop(columns="evaluated_at"))
    assert 'role="img"' not in html
    assert "not recorded" in html
    assert "1 checkpoint." in html


def test_nothing_from_outside_is_markup_and_an_empty_board_is_refused() -> None:
    html = build_leaderboard(_board().assign(checkpoint=EVIL, protocol=EVIL, note=EVIL, axis=EVIL))
    assert "script" not in Page(html).tags
    with pytest.raises(InputError, match="no rows"):
        build_leaderboard(_board().head(0))
