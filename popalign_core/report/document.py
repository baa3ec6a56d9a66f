"""The frame of every page: no script, nothing loaded from outside."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from popalign_core.report.estimates import SYMBOLS, Status
from popalign_core.report.style import CSS
from popalign_core.report.svg_shapes import PATTERNS

_LONGEST_VALUE = 400
"""Characters of a value that is shown at once."""


def html_page(title: str, head: str, sections: Iterable[tuple[str, str]]) -> str:
    """A complete HTML document.

    Args:
        title: Heading, as text.
        head: What stands below the heading, as HTML.
        sections: (heading as text, content as HTML); those without content are left out.
    """
    body = "".join(f"<section><h2>{escape(name)}</h2>{content}</section>" for name, content in sections if content)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>{PATTERNS}"
        f'<header class="top"><h1>{escape(title)}</h1>{head}</header><main>{body}</main>'
        "<footer>Made by PopAlign. This page is complete: it loads nothing.</footer></body></html>\n"
    )


def verdict_box(status: Status, headline: str, sentences: Sequence[tuple[str, str]]) -> str:
    """The verdict: a headline, and (lead, rest) pairs below it."""
    items = "".join(f"<li><b>{escape(lead)}:</b> {escape(rest)}</li>" for lead, rest in sentences)
    return (
        f'<div class="verdict {status}" role="note"><p class="headline"><span aria-hidden="true">'
        f"{SYMBOLS[status]}</span> {escape(headline)}</p><ul>{items}</ul></div>"
    )


def figures(found: Sequence[tuple[str, str]]) -> str:
    """Charts beside each other, each with its caption as text; '' when there is none."""
    inner = "".join(f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>" for title, chart in found)
    return f'<div class="charts">{inner}</div>' if found else ""


def details(summary: str, content: str, *, is_printed: bool = True) -> str:
    """What is folded away on a screen, and on paper unfolded or left out; '' without content."""
    kind = "" if is_printed else ' class="screen"'
    return f"<details{kind}><summary>{_with_code(summary)}</summary>{content}</details>" if content else ""


def bullets(texts: Iterable[str]) -> str:
    """A list of plain sentences."""
    return "<ul>" + "".join(f"<li>{_with_code(text)}</li>" for text in texts) + "</ul>"


def definitions(items: Mapping[str, str]) -> str:
    """Names and values, such as keys and versions; '' when there is none."""
    inner = "".join(f"<dt>{escape(name)}</dt><dd>{_folded(value)}</dd>" for name, value in items.items())
    return f"<dl>{inner}</dl>" if inner else ""


def _with_code(text: str) -> str:
    """What stands between backticks is a command, to be copied."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _folded(value: str) -> str:
    """Long text is folded away; one click selects all of it, to be copied."""
    if len(value) <= _LONGEST_VALUE:
        return escape(value)
    return f'<details><summary>{len(value):,} characters</summary><pre class="all">{escape(value)}</pre></details>'


def quick_look(scale: float) -> list[str]:
    """What to say where fewer images were drawn than are configured; nothing where all were."""
    return [] if scale >= 1 else [f"Quick look: {scale:.0%} of the images configured. Do not release on these numbers."]


def warning(text: str) -> str:
    """Text that nobody may miss."""
    return f'<p class="warning" role="note"><b>⚠ {escape(text)}</b></p>'
