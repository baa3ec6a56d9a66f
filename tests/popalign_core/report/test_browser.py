"""Pages in a real browser, as wide as a phone and a desk: nothing sticks out, all pictures load, no complaints."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from chromium_pages import CHROMIUM, NEEDS_CHROMIUM
from report_frames import inputs_of as report_inputs

from popalign_core.report.comparison_page import build_comparison
from popalign_core.report.document import html_page
from popalign_core.report.leaderboard_page import build_leaderboard
from popalign_core.report.sweep_page import build_sweep
from tests.popalign_core.report.test_leaderboard_page import _board
from tests.popalign_core.report.test_sweep_page import INPUTS as SWEEP
from tests.support.comparison_frames import inputs

pytestmark = NEEDS_CHROMIUM
PDFTOTEXT = shutil.which("pdftotext")

WIDTHS = (390, 1200)
FRAME = '<iframe title="{name} {width}" style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>'
# The pages themselves allow no script; what is around them measures them.
MEASURE = """<pre id="found"></pre><script>
const measure = frame => {
  const page = frame.contentDocument, wide = page.documentElement.clientWidth;
  for (const folded of page.querySelectorAll('details')) folded.open = true;
  const out = [...page.querySelectorAll('body *')].filter(
    element => element.getBoundingClientRect().right > wide + 1 && !element.closest('svg'));
  return [frame.title, {
    scroll_px: page.documentElement.scrollWidth, width_px: wide, n_images: page.images.length,
    n_broken: [...page.images].filter(image => !(image.complete && image.naturalWidth)).length,
    sticking_out: out.map(element => element.outerHTML.slice(0, 120))}];
};
addEventListener('load', () => {
  const found = [...document.querySelectorAll('iframe')].map(measure);
  document.getElementById('found').textContent = JSON.stringify(Object.fromEntries(found));
});
</script>"""


def _crowded() -> str:
    """Fourteen systems with names as long as they get."""
    page, names = inputs(), list[str]()
    tables: dict[str, list[pd.DataFrame]] = {"metrics": [], "comparison": [], "per_prompt": [], "wins": []}
    for n in range(14):
        like = page.systems[n % 4]
        names.append(f"identity-injection+dynamic-cfg-{n}")
        for table, parts in tables.items():
            rows = getattr(page, table)
            parts.append(rows[rows["system"] == like].assign(system=names[-1], reference=names[0]))
    frames = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    grids = {prompt: dict.fromkeys(names, sides["base"]) for prompt, sides in page.grids.items()}
    return build_comparison(inputs(systems=names, reference=names[0], grids=grids, **frames))


PAGES = {
    "crowded": _crowded,
    "comparison": lambda: build_comparison(inputs()),
    "report": lambda: build_comparison(report_inputs()),
    "sweep": lambda: build_sweep(SWEEP),
    "leaderboard": lambda: build_leaderboard(_board()),
}


def _look(pages: dict[str, str], folder: Path) -> tuple[dict[str, Any], str]:
    """What was measured of each page and width, and what the browser complained of."""
    frames = [FRAME.format(name=n, width=w, page=escape(page)) for n, page in pages.items() for w in WIDTHS]
    (folder / "frames.html").write_text(f"<!DOCTYPE html><body>{''.join(frames)}{MEASURE}", encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    where = (f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--window-size=1300,1000")
    command = [str(CHROMIUM), *options, *where, "--dump-dom", (folder / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return json.loads(unescape(found[1])), "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """All pages in all widths, in one start of the browser."""
    return _look({name: build() for name, build in PAGES.items()}, tmp_path_factory.mktemp("browser"))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page_fits_and_its_pictures_load(name: str, width: int, looked: tuple[dict[str, Any], str]) -> None:
    found = looked[0][f"{name} {width}"]
    assert found["sticking_out"] == []
    assert found["scroll_px"] <= found["width_px"]
    assert found["width_px"] > width - 20  # less a scroll bar
    assert (found["n_broken"], found["n_images"]) == (0, PAGES[name]().count("<img"))


def test_browser_does_not_complain(looked: tuple[dict[str, Any], str]) -> None:
    assert looked[1] == ""


def test_the_measurement_itself_notices(tmp_path: Path) -> None:
    broken = (
        '<!DOCTYPE html><p style="width:2000px">x</p><img src="data:image/png;base64,AAAA"><script>nothing()</script>'
    )
    found, complaints = _look({"broken": broken}, tmp_path)
    assert found["broken 390"]["scroll_px"] > 1900
    assert [element[:16] for element in found["broken 390"]["sticking_out"]] == ['<p style="width:']
    assert found["broken 390"]["n_broken"] == 1
    assert "nothing is not defined" in complaints


@pytest.mark.skipif(PDFTOTEXT is None, reason="there is no pdftotext on this machine")
def test_no_heading_is_torn_apart_on_paper(tmp_path: Path) -> None:
    text = "<p>" + "words " * 40 + "</p>"
    headings = [(f"begin{n} {'long ' * 60}end{n}", text * (1 + n % 3)) for n in range(30)]
    (tmp_path / "page.html").write_text(html_page("Paper", "", headings), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    pdf = tmp_path / "page.pdf"
    printing = [str(CHROMIUM), *options, f"--print-to-pdf={pdf}", (tmp_path / "page.html").as_uri()]
    subprocess.run(printing, check=True, capture_output=True, timeout=120)
    read = subprocess.run([str(PDFTOTEXT), str(pdf), "-"], check=True, capture_output=True, text=True).stdout
    begins, ends = (
        {int(n): number for number, page in enumerate(read.split("\f")) for n in re.findall(rf"{word}(\d+)", page)}
        for word in ("begin", "end")
    )
    assert len(begins) == 30
    assert max(begins.values()) > 3
    assert ends == begins
