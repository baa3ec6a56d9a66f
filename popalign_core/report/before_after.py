"""Pictures for the page: before and after, under the same seeds."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from popalign_core.report.run_inputs import Pictures

_LARGEST_PX = 256
"""Larger pictures are made smaller: the page travels by mail."""
_SMALL_PX = 128
"""The same where there are many systems."""


def png_data_uri(pixels_u8: Pictures, largest_px: int = _LARGEST_PX) -> str:
    """`[H, W, 3]` uint8 to a `data:image/png` URI, at most `largest_px` wide and high."""
    image = Image.fromarray(pixels_u8)
    image.thumbnail((largest_px, largest_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def grids(pairs: Mapping[str, tuple[Pictures, Pictures]], base: str, aligned: str) -> str:
    """One block a prompt, before beside after (below it on a phone)."""
    return "".join(
        f'<article class="pair"><h3>“{escape(prompt)}”</h3><div class="sides">'
        f"{_panel(before, 'Before', base, prompt)}{_panel(after, 'After', aligned, prompt)}</div></article>"
        for prompt, (before, after) in pairs.items()
    )


def system_grids(grids: Mapping[str, Mapping[str, Pictures]], systems: Sequence[str]) -> str:
    """One block a prompt, a row of pictures a system; pictures below each other have the same seed."""
    return "".join(
        f'<article class="systems"><h3>“{escape(prompt)}”</h3>'
        + "".join(_strip(name, prompt, sides[name]) for name in systems if name in sides)
        + "</article>"
        for prompt, sides in grids.items()
    )


def _strip(system: str, prompt: str, pictures: Pictures) -> str:
    images = "".join(
        f'<img src="{png_data_uri(picture, _SMALL_PX)}" alt="{escape(system)}, picture {place}: {escape(prompt)}" '
        f'width="{picture.shape[1]}" height="{picture.shape[0]}"{_crisp(picture)}>'
        for place, picture in enumerate(pictures, start=1)
    )
    return f'<figure><figcaption>{escape(system)}</figcaption><div class="strip">{images}</div></figure>'


def _panel(pictures: Pictures, when: str, system: str, prompt: str) -> str:
    images = "".join(
        f'<img src="{png_data_uri(picture)}" alt="{when.lower()}, picture {place}: {escape(prompt)}" '
        f'width="{picture.shape[1]}" height="{picture.shape[0]}"{_crisp(picture)}>'
        for place, picture in enumerate(pictures, start=1)
    )
    caption = f"{when} <span>{escape(system)}</span>"
    return f'<figure class="{when.lower()}"><figcaption>{caption}</figcaption><div class="grid">{images}</div></figure>'


def _crisp(picture: Pictures) -> str:
    return ' class="small"' if max(picture.shape[:2]) < 128 else ""
