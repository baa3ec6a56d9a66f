"""The page of a study."""

import re

import pandas as pd

from popalign_core.config.review import SETS
from popalign_core.report.study_sections import study_document
from popalign_core.report.votes_section import JUDGING_LIMITS, people_section
from popalign_core.review.vote_results import evaluate_votes


def votes(pattern: str, question: str = "fairness", rater: str = "r0") -> pd.DataFrame:
    said = {"a": "a", "b": "b", "t": "tie"}
    rows = [(rater, f"p{n}", f"p{n}", question, said[letter], 2.0, False) for n, letter in enumerate(pattern)]
    return pd.DataFrame(rows, columns=["rater", "pair_id", "prompt_id", "question", "answer", "seconds", "is_check"])


def test_a_preference_is_said_only_where_the_interval_leaves_out_a_half() -> None:
    table = pd.concat([votes("a" * 20), votes("b" * 20 + "a", "quality"), votes("aabbt", "quality", "r1")])
    text = people_section(("new", "old"), evaluate_votes(table, SETS))
    rows = re.findall(r"<tr><th scope=\"row\">(\w+)</th>(.*?)</tr>", text)
    cells = [(name, re.findall(r">([^<>]+)</td>", row)[-1]) for name, row in rows]
    assert cells == [("fairness", "new"), ("fairness", "new"), ("quality", "old"), ("quality", "old")]
    unclear = people_section(("new", "old"), evaluate_votes(votes("aabb"), SETS))
    assert "no clear preference" in unclear


def test_the_page_says_who_was_left_out_and_what_was_not_measured() -> None:
    wrong = votes("bbb", rater="bad").assign(is_check=True, pair_id=["c0", "c1", "c2"])
    page = people_section(("new", "old"), evaluate_votes(pd.concat([votes("aab"), wrong]), SETS))
    assert "6 votes of 2 raters; 1 of them did not pass" in page
    assert "Flagged: rater bad, 0 of 3 checks right." in page
    assert "Agreement on quality" in page
    assert "not measured: no pair has two raters yet" in page


def test_names_are_escaped_and_the_page_loads_nothing() -> None:
    results = evaluate_votes(votes("aab"), SETS)
    section = people_section(("<i>a", "b&c"), results)
    page = study_document("<b>s", "<i>a against b&c", section, "<p>told</p>", JUDGING_LIMITS, {"version": "<1>"})
    for raw in ("<b>s", "<i>a", "b&c<", "<1>"):
        assert raw not in page
    assert "<p>told</p>" in page
    assert re.findall(r'(?:src|href)="', page) == []
    assert "<script" not in page
