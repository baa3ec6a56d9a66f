"""Axes that a configuration may give by name alone."""

from popalign_core.config.base import Axis
from popalign_core.portraits.occupations import GENDERS, RACES

GENDER = Axis(name="gender", classes=GENDERS)
PORTRAIT_RACE = Axis(name="race", classes=RACES)
DEEPFACE_RACE = Axis(
    name="race", classes=("white", "asian", "black", "latino hispanic", "indian", "middle eastern")
)  # DeepFace's class names
COUPLE = Axis(name="couple", classes=("two men", "two women", "a man and a woman"), of="picture", only_measured=True)
AGE = Axis(name="age", classes=("young", "middle-aged", "old"), only_measured=True)
SKIN_TONE = Axis(
    name="skin tone",
    classes=("light", "medium", "dark"),
    words={name: f"{name}-skinned" for name in ("light", "medium", "dark")},
    only_measured=True,
)
AXES = {axis.name: axis for axis in (GENDER, DEEPFACE_RACE, COUPLE, AGE, SKIN_TONE)}
"""By name; race has DeepFace's classes."""
