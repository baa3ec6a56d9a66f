"""The project's pages as text: their blocks, links and headings."""

import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
RUNNABLE = re.compile(r"<!-- runnable(?P<speed>: slow)? -->\n```bash\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
GENERATED = ("reference/configuration.md", "reference/commands.md")


def pages() -> dict[str, str]:
    """Path below the repository -> text, of everything that a user reads there."""
    paths = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    return {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language, without their indentation."""
    found = []
    for match in FENCE.finditer(text):
        if match["language"] == language:
            n = len(match["indent"])
            found.append("".join(line[n:] for line in match["body"].splitlines(keepends=True)))
    return found


def runnable(text: str, *, slow: bool) -> list[str]:
    """The shell blocks that a page marks as runnable: those of seconds, or those of minutes."""
    return [match["body"] for match in RUNNABLE.finditer(text) if bool(match["speed"]) == slow]


def prose(text: str) -> str:
    """What is left without code: no fences, no inline code, no comments, no addresses."""
    text = FENCE.sub("", text)
    for pattern in (r"<!--.*?-->", r"`[^`]*`", r"\]\([^)]*\)", r"\{#[^}]*\}"):
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return text


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as python-markdown and GitHub make them."""
    found = set()
    for line in FENCE.sub("", text).splitlines():
        heading = re.match(r"#+ (.*?)(?: \{#(\S+)\})?$", line)
        if heading:
            words = re.sub(r"[^\w\s-]", "", heading[1].replace("`", "")).strip().lower()
            found.add(heading[2] or re.sub(r"[\s]+", "-", words))
    return found


def links(name: str, text: str) -> Iterator[tuple[str, Path, str]]:
    """Links of a page to files of the repository: as written, where they lead, and the anchor."""
    for match in LINK.finditer(FENCE.sub("", text)):
        target = match["target"]
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        here = REPOSITORY / name
        yield target, (here.parent / file if file else here), anchor
