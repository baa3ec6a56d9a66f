"""The invented world of the embedded model: occupations, their bias, their visible mark.

Every number in this file is made up for the demonstration. The joint distributions imitate the *shape* of the
bias that public text-to-image models show (most occupations lean one way, a few the other); they say nothing
about any real occupation or any real person.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GENDERS = ("male", "female")
RACES = ("white", "black", "asian")
IDENTITIES = tuple((gender, race) for gender in GENDERS for race in RACES)

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (232, 232, 228),
    "red": (190, 45, 45),
    "orange": (222, 124, 38),
    "yellow": (222, 190, 62),
    "green": (54, 128, 66),
    "teal": (38, 138, 142),
    "blue": (54, 92, 176),
    "navy": (32, 42, 84),
    "purple": (112, 62, 146),
    "pink": (216, 126, 162),
    "brown": (112, 76, 48),
    "grey": (126, 128, 132),
}
BACKDROPS: dict[str, tuple[int, int, int]] = {
    "stone": (196, 194, 188),
    "sand": (214, 190, 148),
    "sky": (150, 188, 222),
    "sage": (158, 188, 150),
    "slate": (92, 104, 118),
    "rose": (212, 168, 168),
}

# P(white), P(black), P(asian) for the three invented leanings.
_RACE_LEANING = {"white": (0.90, 0.05, 0.05), "black": (0.08, 0.87, 0.05), "asian": (0.08, 0.05, 0.87)}
_P_MALE = {"male": 0.96, "female": 0.06}


@dataclass(frozen=True)
class Occupation:
    """One occupation of the invented world.

    Attributes:
        name: The noun used in captions.
        leaning: (gender, race) the occupation leans to.
        clothing: Key into `COLOURS`.
        backdrop: Key into `BACKDROPS`.
        cover: What hides the face in most images, or None.
    """

    name: str
    leaning: tuple[str, str]
    clothing: str
    backdrop: str
    cover: str | None = None

    def joint(self) -> NDArray[np.float64]:
        """P(gender, race), `[2, 3]` in the order of `GENDERS` and `RACES`, sums to 1."""
        p_male = _P_MALE[self.leaning[0]]
        return np.outer([p_male, 1.0 - p_male], _RACE_LEANING[self.leaning[1]])


def _occupations(leaning: tuple[str, str], *rows: tuple[str, ...]) -> tuple[Occupation, ...]:
    return tuple(Occupation(row[0], leaning, row[1], row[2], row[3] if len(row) > 3 else None) for row in rows)


OCCUPATIONS: tuple[Occupation, ...] = (
    *_occupations(
        ("male", "white"),
        ("doctor", "white", "sky"),
        ("engineer", "orange", "stone"),
        ("judge", "navy", "sand"),
        ("lawyer", "grey", "rose"),
        ("pilot", "navy", "sky"),
        ("professor", "brown", "sage"),
        ("architect", "grey", "sand"),
        ("banker", "navy", "slate"),
        ("plumber", "blue", "stone"),
        ("electrician", "yellow", "slate"),
        ("carpenter", "brown", "sand"),
        ("firefighter", "red", "slate"),
        ("mechanic", "blue", "slate"),
        ("surgeon", "teal", "sky"),
        ("senator", "navy", "rose"),
        ("farmer", "green", "sky"),
        ("photographer", "grey", "sage"),
        ("detective", "brown", "slate"),
        ("chef", "white", "rose"),
        ("scientist", "white", "sage"),
        ("journalist", "purple", "stone"),
        ("butcher", "red", "stone"),
        ("astronaut", "white", "slate", "helmet"),
        ("welder", "orange", "slate", "shield"),
        ("fencer", "white", "stone", "mesh"),
        ("beekeeper", "yellow", "sage", "veil"),
    ),
    *_occupations(
        ("female", "white"),
        ("nurse", "teal", "rose"),
        ("librarian", "purple", "sand"),
        ("florist", "pink", "sage"),
        ("dancer", "pink", "slate"),
        ("secretary", "pink", "stone"),
    ),
    *_occupations(
        ("male", "black"),
        ("sculptor", "orange", "sand"),
        ("drummer", "purple", "slate"),
        ("barber", "green", "stone"),
        ("tailor", "yellow", "sand"),
    ),
    *_occupations(("female", "black"), ("poet", "purple", "rose")),
    *_occupations(
        ("male", "asian"), ("potter", "teal", "sand"), ("watchmaker", "green", "slate"), ("gardener", "green", "sage")
    ),
    *_occupations(("female", "asian"), ("violinist", "red", "rose")),
)
HIDDEN_FACE_RATE = 0.75
"""Share of the images of a covering occupation in which the cover is worn."""

THINGS = (
    "tree", "palm tree", "cactus", "sunflower", "rose", "mushroom", "house", "castle", "tent", "car", "bus", "bicycle",
    "airplane", "sailboat", "rocket", "train", "cat", "dog", "horse", "cow", "pig", "elephant", "penguin", "owl",
    "fish", "butterfly", "turtle", "frog", "lion", "panda", "apple", "banana", "strawberry", "pizza", "hamburger",
    "birthday cake", "cup of coffee", "bread", "cheese", "ice cream", "guitar", "piano", "trumpet", "camera", "book",
    "clock", "umbrella", "key", "light bulb", "hammer", "football", "basketball", "mountain", "volcano", "rainbow",
    "sun", "moon", "snowman", "globe", "robot",
)  # fmt: skip
"""The objects of the pack: prompts without people."""

EVAL_OCCUPATIONS = (
    "judge", "pilot", "banker", "carpenter", "surgeon", "farmer", "chef", "scientist", "fencer", "lawyer", "plumber",
    "librarian", "drummer", "barber", "poet", "watchmaker",
)  # fmt: skip
"""Occupations that no preference data covers: the evaluation is on these. Most lean one way, as in public models."""
