"""Pages in a real Chromium: opened at a screen's size, and what is asked of them there."""

import shutil
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}

_WIDTHS = "() => [...document.images].filter(i => i.alt).map(i => i.naturalWidth)"
_CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const [r, g, b] = numbers(colour).slice(0, 3).map(c => linear(c / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('h1, h2, p, q, a, button, span')].filter(e => e.innerText).map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return (a + .05) / (b + .05);
  });
}"""


def open_page(browser: Any, link: str, **options: Any) -> tuple[Any, list[str]]:
    """A page of a browser of its own, and what went wrong in it so far."""
    page, wrong = browser.new_context(**options).new_page(), list[str]()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda response: wrong.append(response.url) if response.status >= 400 else None)
    page.goto(link)
    return page, wrong


def check_screen(page: Any, options: Any) -> None:
    """Nothing is wider than the screen, every answer is in reach of a thumb, text stands out from its ground."""
    width, height = options["viewport"]["width"], options["viewport"]["height"]
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    assert min(page.evaluate(_WIDTHS)) > 0
    for button in page.locator("footer button").all():
        box = button.bounding_box()
        assert box["height"] >= 44
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
    assert min(page.evaluate(_CONTRAST)) >= 4.5
