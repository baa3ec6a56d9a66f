"""Templates of the review pages: all values are escaped, and HTML in Markdown is not passed through."""

from functools import cache
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent
STATIC = HERE / "static"


@cache
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)


def page(template: str, status_code: int = 200, **values: Any) -> HTMLResponse:
    """A page."""
    return HTMLResponse(_environment().get_template(template).render(**values), status_code)


def message(text: str, status_code: int, *, back: str | None = None) -> HTMLResponse:
    """A page that says one thing, and where to go on."""
    return page("message.html", status_code, text=text, back=back)


def markdown(text: str) -> Markup:
    """Markdown as HTML; tags in it are shown as they are written, and links lead to web pages only."""
    from markdown_it import MarkdownIt

    return Markup(MarkdownIt("js-default").render(text))  # the preset escapes HTML
