"""Phrases that read as translated, or that the glossary replaces: none in pages, help or messages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_pages import DOCS, REPOSITORY, pages, prose

PACKAGES = ("flows", "tasks", "popalign_core", "storage")
PHRASES = {
    r"\brepeat at will\b|\bas often as you like\b": "repeatable",
    r"\blay (?:a value|them|it) over\b|\blaid over\b": "override",
    r"\bgo(?:es)? round in a circle\b": "form a cycle",
    r"\bwhat nothing beats\b|\bon the front\b": "Pareto front",
    r"\bthe text encoders are\s+gone\b": "are unloaded after encoding",
    r"\bis warned of\b": "is logged",
    r"\bwhat writes\b": "commands that write",
    r"\bto repeat it\b": "reproducibility",
    r"\bleft out, and why\b": "dropped images",
    r"\bwhat (?:this page|this) cannot say\b": "limitations",
    r"\bthe same command again goes on\b|\b(?:same command|it) goes on\b|\bgoing on (?:from|with)\b": "resumes",
    r"\bsee to it\b|\btake it away\b": "fix or remove it",
    r"\bunasked\b": "without asking",
    r"\b(?:is|are) (?:damaged or )?not whole\b|\bcame whole\b|\bis no whole\b": "incomplete",
    r"\bfor want of\b": "for lack of",
    r"\bto and fro\b": "between devices",
    r"\bcount(?:s|ed)? for nothing\b": "is not counted",
    r"\bnot to be told apart\b": "no significant difference",
    r"\bis there already\b|\bare there already\b": "already exists",
    r"\bmade anew\b|\bask(?:ed)? anew\b": "again",
    r"\bfrom the start on\b|\bwithout more ado\b": "from the start",
    r"\bwhen not given\b|\bwhen nothing is given\b": "default:",
    r"\bto be had\b": "available",
    r"\btaken at (?:its|their) word\b": "accepted",
    r"\b(?:images|pairs|sets|raters|steps|people|prompts|seeds) a (?:pair|set|prompt|rater|system|step|run)\b": "per",
    r"\brivals?\b": "baseline",
    r"\bforeign\b": "external",
    r"\bsurveys?\b": "study",
    r"\b(?:images?|pictures?) (?:that (?:is|are|was|were) )?drawn by\b": "sampled",
}
FOR_RATERS = ("flows/review", "popalign_core/review", "popalign_core/config/review.py")
KEPT = (
    "popalign_core/training/model_card.py",  # its text is part of stage train's artifacts
    "popalign_core/evaluation/",  # notes are part of stage evaluate's tables
    "popalign_core/prompts/",  # what a language model is asked, and patterns
    "popalign_core/portraits_recipe/",  # the card of the weights that ship
)


def faults(where: str, text: str) -> Iterator[str]:
    for pattern, better in PHRASES.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield f"{where}: {match[0]!r}; write {better!r}"


def strings(path: Path) -> Iterator[str]:
    """What a module may show a user: its strings without docstrings, and the docstrings of commands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            silent.add(id(node.value))
        if isinstance(node, ast.JoinedStr):  # its parts are read as one, with a gap for each value
            silent |= {id(part) for part in ast.walk(node) if part is not node}
        if isinstance(node, ast.FunctionDef) and "typer." in ast.unparse(node.args):
            yield ast.get_docstring(node) or ""
    for node in ast.walk(tree):
        if id(node) in silent:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)


def test_pages_read_native() -> None:
    found = [
        fault for name, text in pages().items() if name != "CONTRIBUTING.md" for fault in faults(name, prose(text))
    ]
    assert found == []


def test_help_reads_native() -> None:
    """Its text is in code blocks of the generated page."""
    assert list(faults("help", (DOCS / "reference" / "commands.md").read_text(encoding="utf-8"))) == []


def test_what_raters_read_is_native() -> None:
    paths = [*(REPOSITORY / "flows" / "review" / "templates").glob("*.html")]
    paths += (REPOSITORY / "popalign_core" / "review").glob("*.md")
    found = [fault for path in paths for fault in faults(path.name, path.read_text(encoding="utf-8"))]
    assert len(paths) > 10
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_messages_read_native(package: str) -> None:
    found = []
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        where = path.relative_to(REPOSITORY).as_posix()
        for text in strings(path):
            if " " in text:
                found += faults(where, re.sub(r"`[^`]*`", "X", text))
    assert found == []


def test_an_image_is_no_picture_but_to_raters() -> None:
    """Code and field names keep their old word, such as `of = "picture"`."""
    found = [
        name for name, text in pages().items() if name != "CONTRIBUTING.md" and re.search(r"\bpictures?\b", prose(text))
    ]
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            where = path.relative_to(REPOSITORY).as_posix()
            if where.startswith((*FOR_RATERS, *KEPT)):
                continue
            found += [
                f"{where}: {text[:80]!r}" for text in strings(path) if " " in text and re.search(r"\bpictures?\b", text)
            ]
    assert found == []


def test_the_phrases_are_found_where_they_stand() -> None:
    assert list(faults("x", "Lay a value over the configuration; repeat at will.")) == [
        "x: 'repeat at will'; write 'repeatable'",
        "x: 'Lay a value over'; write 'override'",
    ]
    assert list(faults("x", "Override a field; repeatable. The base model's on the Pareto front.")) == []


def test_troubleshooting_quotes_messages_as_they_are() -> None:
    """What stands between the dots of a quoted message is in a message of the source."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").partition("## Configuration and command line")[2]
    said = "\n".join(
        text for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py") for text in strings(path)
    )
    quoted = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    pieces = [piece.strip() for message in quoted for piece in message.split("...")]
    assert len(pieces) > 30
    assert [piece for piece in pieces if piece not in said] == []
