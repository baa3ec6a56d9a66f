"""The pages: generated ones are current, links lead somewhere, configuration loads, commands run, the site builds."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from doc_pages import DOCS, GENERATED, REPOSITORY, anchors, blocks, links, pages, runnable
from pydantic import BaseModel

from popalign_core.config import PipelineConfig, RuntimeConfig, load_config
from popalign_core.config.presets import preset
from popalign_core.config.review import STUDIES
from popalign_core.config.systems import configure_system
from popalign_core.prompts.checks import check_prompts
from popalign_core.prompts.grammar import write_prompts

HAS_SITE_TOOLS = all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings"))
WITH_BLOCKS = [name for name, text in pages().items() if runnable(text, slow=False)]
WITH_SLOW_BLOCKS = [name for name, text in pages().items() if runnable(text, slow=True)]
MAX_README_WORDS = 1200


def load_script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference_pages() -> ModuleType:
    return load_script("reference_pages")


def test_generated_pages_are_current(reference_pages: ModuleType) -> None:
    """Else: `python docs/reference_pages.py`."""
    stale = [
        name for name, make in reference_pages.PAGES.items() if (DOCS / name).read_text(encoding="utf-8") != make()
    ]
    assert stale == []
    assert set(GENERATED) == set(reference_pages.PAGES)


def configuration_models() -> Iterator[type[BaseModel]]:
    left: list[type[BaseModel]] = [PipelineConfig, RuntimeConfig, *STUDIES.values()]
    seen = set[type[BaseModel]]()
    from popalign_core.config.base import _models

    while left:
        model = left.pop()
        if model not in seen:
            seen.add(model)
            yield model
            left += [inner for field in model.model_fields for inner in _models(model, field)]


def test_every_field_of_the_configuration_is_described() -> None:
    bare = [
        f"{model.__name__}.{name}"
        for model in configuration_models()
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert bare == []


def test_links_lead_somewhere() -> None:
    lost = []
    for name, text in pages().items():
        for target, path, anchor in links(name, text):
            if not path.exists():
                lost.append(f"{name}: {target}")
            elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8")):
                lost.append(f"{name}: {target} (no such heading)")
    assert lost == []


def test_every_page_is_in_the_navigation() -> None:
    nav = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/-]+\.md", nav))
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_before_and_after_stand_below_each_other_and_in_the_page_once(tmp_path: Path) -> None:
    script = load_script("before_after")
    black, white = (np.full((3, 8, 8, 3), grey, np.uint8) for grey in (0, 255))
    sheet = script.draw({"a photo of a doctor": (black, white), "a photo of a judge": (white, black)})
    assert sheet.size == (script.LEFT + 3 * script.CELL, 2 * (script.LINE + 2 * script.CELL))
    middle = (script.LEFT + script.CELL // 2, script.LINE + script.CELL // 2)
    assert sheet.getpixel(middle) == (0, 0, 0)
    assert sheet.getpixel((middle[0], middle[1] + script.CELL)) == (255, 255, 255)
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{script.MARK}\n\nText\n", encoding="utf-8")
    for _ in range(2):
        script.show_in(page, "before-after.png")
    assert page.read_text(encoding="utf-8").count("(before-after.png)") == 1


def test_the_readme_is_short() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= MAX_README_WORDS


def test_the_readmes_figures_are_those_of_the_figures_page() -> None:
    """One run, told twice: no figure of README's table that the page does not have."""
    readme, page = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "docs/figures.md"))
    table = readme.partition("## What comes out")[2].partition("## Your own model")[0]
    default_run = page.partition("## The default run")[2].partition("\n## ")[0]
    figures = re.findall(r"(?<=\| )\.\d+", table)
    assert len(figures) == 8
    assert [figure for figure in figures if figure not in default_run] == []


def test_every_piece_of_configuration_loads(tmp_path: Path) -> None:
    path, n = tmp_path / "piece.toml", 0
    for name, text in pages().items():
        for piece in blocks(text, "toml"):
            path.write_text(piece if "preset =" in piece else f'preset = "portraits"\n{piece}', encoding="utf-8")
            config = load_config(path)
            assert config != preset("portraits"), name
            for system in config.systems:
                configure_system(config, system)
            n += 1
    assert n >= 10


def test_the_alignment_example_can_be_run(tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(blocks((DOCS / "align.md").read_text(encoding="utf-8"), "toml")[0], encoding="utf-8")
    config = load_config(path)
    check_prompts(write_prompts(config.prompts), config.axes)
    assert config.training.lora_rank == 8


def test_the_paper_index_names_code_and_tests_that_exist() -> None:
    lost = []
    text = (DOCS / "paper-index.md").read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"`(popalign_core(?:\.\w+)+)`", text))):
        parts = name.split(".")
        folder, module = REPOSITORY.joinpath(*parts), REPOSITORY.joinpath(*parts).with_suffix(".py")
        parent = REPOSITORY.joinpath(*parts[:-1]).with_suffix(".py")
        if not (folder.is_dir() or module.is_file()) and not (
            parent.is_file() and re.search(rf"^(def|class) {parts[-1]}\b", parent.read_text(), re.MULTILINE)
        ):
            lost.append(name)
    for file, function in re.findall(r"`([\w./]+(?:\.py|/))(?:::(\w+))?`", text):
        path = REPOSITORY / "tests" / "popalign_core" / file
        if not path.exists() or (function and f"def {function}(" not in path.read_text(encoding="utf-8")):
            lost.append(f"{file}::{function}")
    assert lost == []


def run_blocks(name: str, folder: Path, *, slow: bool) -> None:
    """In a shell that ends at the first error, in a folder of its own, with this checkout's command."""
    command = folder / "bin" / "popalign"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from flows.cli.app import main; main()" "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY), "POPALIGN_CACHE": str(folder / "cache")}
    script = "set -euo pipefail\n" + "\n".join(runnable(pages()[name], slow=slow))
    result = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_marked_commands_run(name: str, tmp_path: Path) -> None:
    run_blocks(name, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", WITH_SLOW_BLOCKS)
def test_marked_commands_of_minutes_run(name: str, tmp_path: Path) -> None:
    run_blocks(name, tmp_path, slow=True)


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.loaded, self.ids = list[str](), list[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe") and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon") and "href" in given:
            self.loaded.append(given["href"])


@pytest.mark.skipif(not HAS_SITE_TOOLS, reason="the extra `docs` is not installed: make setup-docs")
def test_the_site_builds_strictly_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    check_site(tmp_path)


def check_site(site: Path) -> None:
    """Nothing is loaded from other hosts, and every link inside leads to a page and an anchor that exist."""
    found = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(found) >= len(list(DOCS.rglob("*.md")))
    lost = []
    for path, page in found.items():
        lost += [f"{path.name} loads {each}" for each in page.loaded if re.match(r"(https?:)?//", each)]
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (anchor and target in found and anchor not in found[target].ids):
                lost.append(f"{path.name}: {link}")
    assert lost == []
