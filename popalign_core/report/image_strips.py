"""Images of several systems on a page, those of the same seed below each other."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from popalign_core.report.comparison_inputs import Images

_LARGEST_PX = 256
"""Larger pictures are made smaller: the page travels by mail."""
_SMALL_PX = 128
"""The same where there are many systems."""


def png_data_uri(pixels_u8: Images, largest_px: int = _LARGEST_PX) -> str:
    """`[H, W, 3]` uint8 to a `data:image/png` URI, at most `largest_px` wide and high."""
    image = Image.fromarray(pixels_u8)
    image.thumbnail((largest_px, largest_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def system_grids(grids: Mapping[str, Mapping[str, Images]], systems: Sequence[str]) -> str:
    """One block a prompt, a row of pictures a system; pictures below each other have the same seed."""
    largest_px = _LARGEST_PX if len(systems) == 2 else _SMALL_PX
    return "".join(
        f'<article class="{"two systems" if len(systems) == 2 else "systems"}"><h3>“{escape(prompt)}”</h3>'
        + "".join(_strip(name, prompt, sides[name], largest_px) for name in systems if name in sides)
        + "</article>"
        for prompt, sides in grids.items()
    )


def _strip(system: str, prompt: str, pictures: Images, largest_px: int) -> str:
    images = "".join(
        f'<img src="{png_data_uri(picture, largest_px)}" alt="{escape(system)}, image {place}: {escape(prompt)}" '
        f'width="{picture.shape[1]}" height="{picture.shape[0]}"{_crisp(picture)}>'
        for place, picture in enumerate(pictures, start=1)
    )
    return f'<figure><figcaption>{escape(system)}</figcaption><div class="strip">{images}</div></figure>'


def _crisp(picture: Images) -> str:
    return ' class="small"' if max(picture.shape[:2]) < 128 else ""
