"""The training pool: every image the embedded model learns from, rendered once and kept in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.portraits.occupations import GENDERS, IDENTITIES, OCCUPATIONS, RACES
from popalign_core.portraits.rendering import (
    Portrait,
    draw_portrait,
    draw_thing,
    is_covered,
    load_portraits,
    load_things,
)

TEMPLATES = ("a photo of {}", "a realistic photo of {}", "a portrait of {}", "best quality, a realistic photo of {}")
EMPTY_CAPTION_RATE = 0.1


@dataclass(frozen=True)
class ImagePool:
    """Images with what is known about each.

    Attributes:
        pixels_u8: `[N, 64, 64, 3]` RGB.
        rows: One row an image: `draw` (neutral, identity, extra, thing), `portrait_id`, `occupation`, `gender`,
            `race`, `covered`, `thing`. Columns that do not apply hold None.
    """

    pixels_u8: NDArray[np.uint8]
    rows: pd.DataFrame

    def select(self, mask: NDArray[np.bool_]) -> "ImagePool":
        """The images where `mask` is true."""
        return ImagePool(self.pixels_u8[mask], self.rows[mask].reset_index(drop=True))


def build_pool(
    data_dir: Path,
    *,
    split: str,
    n_neutral: int,
    n_identity: int,
    n_extra: int,
    n_things: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> ImagePool:
    """Render a pool.

    Neutral draws take the identity from the occupation's biased joint; identity draws take the six identities
    equally often; extra draws take anyone, also people without a race label (for the autoencoder and the face
    detector only).

    Args:
        data_dir: Folder with the two packs.
        split: "train" or "holdout": whose portraits.
        n_neutral: Number of neutral draws; n_identity, n_extra, n_things likewise.
        seed: Decides everything.
        progress: Called with (done, total).
    """
    portraits = [portrait for portrait in load_portraits(data_dir) if portrait.split == split]
    things = load_things(data_dir)
    cells = {cell: [p for p in portraits if (p.gender, p.race) == cell] for cell in IDENTITIES}
    plan = ["neutral"] * n_neutral + ["identity"] * n_identity + ["extra"] * n_extra + ["thing"] * n_things
    pixels = np.empty((len(plan), 64, 64, 3), np.uint8)
    rows: list[dict[str, object]] = []
    for index, draw in enumerate(plan):
        rng = np.random.default_rng([seed, index])
        if draw == "thing":
            thing = things[index % len(things)]
            pixels[index] = draw_thing(thing, rng)
            rows.append({"draw": draw, "thing": thing.name})
        else:
            pixels[index], row = _draw_person(draw, portraits, cells, rng)
            rows.append(row)
        if progress and index % 1000 == 0:
            progress(index, len(plan))
    columns = ["draw", "portrait_id", "occupation", "gender", "race", "covered", "thing"]
    return ImagePool(pixels, pd.DataFrame(rows, columns=columns).astype(object).where(lambda t: t.notna(), None))


def _draw_person(
    draw: str, portraits: list[Portrait], cells: dict[tuple[str, str], list[Portrait]], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], dict[str, object]]:
    occupation = OCCUPATIONS[rng.integers(len(OCCUPATIONS))]
    if draw == "extra":
        portrait = portraits[rng.integers(len(portraits))]
    else:
        p = occupation.joint().ravel() if draw == "neutral" else np.full(len(IDENTITIES), 1 / len(IDENTITIES))
        people = cells[IDENTITIES[rng.choice(len(IDENTITIES), p=p)]]
        portrait = people[rng.integers(len(people))]
    covered = is_covered(occupation, rng)
    row: dict[str, object] = {
        "draw": draw,
        "portrait_id": portrait.portrait_id,
        "occupation": occupation.name,
        "gender": portrait.gender,
        "race": portrait.race,
        "covered": covered,
    }
    return draw_portrait(portrait, occupation, rng, covered=covered), row


def write_caption(row: dict[str, object], rng: np.random.Generator) -> str:
    """A caption for one pool row: neutral draws hide the identity, identity draws name it (all of it, mostly).

    Raises:
        ValueError: For an "extra" row, which has no truthful caption.
    """
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    if row["draw"] == "extra":
        raise ValueError("an 'extra' image has no caption: its race label is unknown")
    if rng.random() < EMPTY_CAPTION_RATE:
        return ""
    if row["draw"] == "thing":
        return template.format(plain_article(str(row["thing"])))
    # Identity draws are spread evenly over the identities, so they may only be called "person" when named in full.
    noun = str(row["occupation"])
    if row["draw"] == "neutral":
        return template.format(plain_article(noun))
    words = [str(row["race"]), str(row["gender"]), noun]
    return template.format(plain_article(" ".join(words)))


def plain_article(phrase: str) -> str:
    """The phrase behind "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def vocabulary(data_dir: Path) -> list[str]:
    """Every word that captions of this world can hold, sorted."""
    phrases = [o.name for o in OCCUPATIONS] + [t.name for t in load_things(data_dir)] + list(TEMPLATES)
    words = {word.strip(",{}") for phrase in phrases for word in phrase.split()}
    words |= {"an", "person", "man", "woman", "with", "and", "in", *GENDERS, *RACES}
    return sorted(word for word in words if word)
