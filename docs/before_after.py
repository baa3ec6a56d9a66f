"""Makes the picture of README.md: images of the base and of the aligned model under the same seeds, out of a run.

    python docs/before_after.py portraits --root artifacts

It writes docs/before-after.png and puts it behind the mark `<!-- before-after -->` of README.md and docs/index.md.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this checkout's packages, whatever is installed

from storage.store import ArtifactRef, Store  # noqa: E402
from tasks.stages.image_grid import Pairs, read_pairs  # noqa: E402

PICTURE = HERE / "before-after.png"
MARK = "<!-- before-after -->"
ALT = "The same prompts and seeds, before and after alignment"
CELL, LEFT, LINE, FONT_SIZE = 72, 84, 22, 13


def draw(pairs: Pairs) -> Image.Image:
    """For each prompt its text, a row of the base model's images, and below it the aligned model's."""
    n_images = max(len(before) for before, _ in pairs.values())
    height = len(pairs) * (LINE + 2 * CELL)
    sheet = Image.new("RGB", (LEFT + n_images * CELL, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, (prompt, sides) in enumerate(pairs.items()):
        top = number * (LINE + 2 * CELL)
        pen.text((LEFT, top + 3), prompt, fill="black", font=font)
        for row, (label, images) in enumerate(zip(("base", "aligned"), sides, strict=True)):
            y = top + LINE + row * CELL
            pen.text((6, y + CELL // 2 - 8), label, fill="black", font=font)
            _paste_row(sheet, images, y)
    return sheet


def _paste_row(sheet: Image.Image, images: NDArray[np.uint8], y: int) -> None:
    for column, pixels_u8 in enumerate(images):
        cell = Image.fromarray(pixels_u8).resize((CELL - 2, CELL - 2), Image.Resampling.LANCZOS)
        sheet.paste(cell, (LEFT + column * CELL, y))


def read_run(store: Store, run: str, n_prompts: int, n_images: int) -> Pairs:
    """The first images of the first neutral evaluation prompts of a run.

    Raises:
        SystemExit: When the run is not there, or did not sample both models.
    """
    record = store.run_folder(run).read_record()
    nodes: Mapping[str, str] = (record or {}).get("meta", {}).get("nodes", {})
    wanted = ("benchmarks", "sample-eval:base", "sample-eval:aligned")
    missing = [node for node in wanted if node not in nodes]
    if missing:
        sys.exit(f"run {run!r} in {store.root} has no {', '.join(missing)}; it has {', '.join(nodes) or 'nothing'}")
    prompts, base, aligned = (ArtifactRef(*nodes[node].split("/")) for node in wanted)
    return read_pairs(store, store.read_table(prompts, "prompts"), base, aligned, {"neutral": n_prompts}, n_images)


def show_in(page: Path, link: str) -> None:
    """Put the picture behind the page's mark, once."""
    text = page.read_text(encoding="utf-8")
    line = f"{MARK}\n![{ALT}]({link})\n"
    if MARK in text and line not in text:
        page.write_text(text.replace(f"{MARK}\n", line), encoding="utf-8")


def main() -> None:
    """Make the picture of the run that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder under runs/")
    parser.add_argument("--root", default="artifacts", help="store")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--images", type=int, default=8)
    given = parser.parse_args()
    draw(read_run(Store(given.root, create=False), given.run, given.prompts, given.images)).save(PICTURE, optimize=True)
    show_in(HERE.parent / "README.md", "docs/before-after.png")
    show_in(HERE / "index.md", "before-after.png")


if __name__ == "__main__":
    main()
