"""Reading the pages that reports are: tags, links and drawn values; refuses event handlers and unclosed tags."""

import re
from html.parser import HTMLParser

_VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """A page, read; `tags` and `links` in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self._open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self._open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"event handler {name} on {tag}"
            if name in ("src", "href", "srcset", "xlink:href", "action"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def text_of(html: str) -> str:
    """What a reader sees."""
    return re.sub(r"<[^>]+>", "", html)


def dots(svg: str) -> dict[str, tuple[float, float, str]]:
    """Name of each dot (the first word it says) to its place and kind."""
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+" class="(\w+)"><title>([^\s<:]+)', svg)
    return {name: (float(x), float(y), kind) for x, y, kind, name in found}
