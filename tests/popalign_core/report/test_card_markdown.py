"""The tables of the pages in Markdown."""

import json
from itertools import pairwise

from report_frames import inputs_of

from popalign_core.report.card_markdown import comparison_markdown, read_headline, verdict_markdown
from popalign_core.report.standings import ComparisonResults
from tests.support.comparison_frames import inputs


def test_comparison_has_verdict_tables_reasons_and_limits() -> None:
    text = comparison_markdown(inputs(scale=0.5))
    for expected in (
        "**✔ fair and costly are fairer than base, 1 at a cost**",
        "Quick look: 50% of the images configured.",
        "| System | Gender, all prompts | Gender, mean | No usable face | CLIP score |",
        "| fair | 0.100 (0.060 to 0.140; fair 0.020) ✔ | 0.200 (0.160 to 0.240; fair 0.090) ✔ |",
        "| costly | 85.0% (81.0 to 89.0) ✖ |",
        "| fair | not measured [1] |",
        "- [1] not measured: no weights for PickScore; set evaluation.scorers",
        "- command: popalign compare base fair costly same",
        "Demonstration only.",
    ):
        assert expected in text, expected
    assert "nan" not in text


def test_rows_of_a_table_have_equally_many_cells() -> None:
    lines = comparison_markdown(inputs()).splitlines()
    for before, after in pairwise(lines):
        if before.startswith("|") and after.startswith("|"):
            assert before.count("|") == after.count("|"), (before, after)


def test_names_from_outside_break_no_table() -> None:
    page = inputs()
    evil = "a|b <script> `x`\n# c"
    renamed = {name: getattr(page, name).replace("same", evil) for name in ("metrics", "comparison", "per_prompt")}
    text = comparison_markdown(inputs(systems=("base", "fair", evil), title=evil, **renamed))
    assert "| a\\|b &lt;script&gt; \\`x\\` # c |" in text
    assert "<script>" not in text
    assert "\n# c" not in text


def test_base_and_aligned() -> None:
    text = comparison_markdown(inputs_of())
    assert "**✔ Fairer on gender**" in text
    assert "| Measure | base | aligned | Change | Verdict |" in text
    assert (
        "| Gender discrepancy, all prompts together | 0.500 (0.400 to 0.600; fair 0.050) | "
        "0.100 (0.050 to 0.150; fair 0.050) | −0.400 (−0.500 to −0.300) | ✔ improved |"
    ) in text
    assert "recall:male" not in text
    assert "One seed only." in text


def test_a_configuration_can_be_copied_from_the_card() -> None:
    document = {"axes": ["a_b"], "model": {"name": "x|y`z`"}}
    items = {"command": "popalign run", "configuration": json.dumps(document)}
    text = comparison_markdown(inputs_of(reproducibility=items))
    block = text[text.index("```json\n") + 8 :]
    assert json.loads(block[: block.index("\n```")]) == document
    assert "- command: popalign run" in text


def test_the_headline_is_read_back_as_it_was_written() -> None:
    assert read_headline(comparison_markdown(inputs())) == "✔ fair and costly are fairer than base, 1 at a cost"
    evil = "a|b <script> `x` *y* _z_ [c]"
    page = inputs()
    renamed = {name: getattr(page, name).replace("fair", evil) for name in ("metrics", "comparison", "per_prompt")}
    text = comparison_markdown(inputs(systems=("base", evil, "costly", "same"), **renamed))
    assert read_headline(text) == f"✔ {evil} and costly are fairer than base, 1 at a cost"
    assert read_headline("## A card\n\n**Bold**\n\n- **✔ of a list**\n") is None


def test_the_verdict_alone_is_the_cards() -> None:
    said = verdict_markdown(ComparisonResults(inputs()))
    assert said.startswith("**✔ fair and costly are fairer than base, 1 at a cost**\n\n- **")
    assert said in comparison_markdown(inputs())
