"""Images of prompts and what a reader saw in them, made up row by row."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from popalign_core.attributes.classifier_interface import FaceReading
from popalign_core.attributes.filtering import filter_readings
from popalign_core.config import AttributesConfig, Axis, PreferencesConfig, PromptsConfig
from popalign_core.identities.augment import augment_prompts
from popalign_core.preferences.set_pairs import build_sets
from popalign_core.preferences.target import Target
from popalign_core.prompts.grammar import write_prompts

GENDER = Axis(name="gender", classes=("male", "female"))
RACE = Axis(name="race", classes=("white", "black", "asian"))
AXES = (GENDER, RACE)
CELLS = tuple(product(GENDER.classes, RACE.classes))
WHITE_MEN = {("male", "white"): 24}
CONFIG = PreferencesConfig(n_neutral=24, n_specific=6, set_size=12, n_sets=2)


def prompts(*subjects, evaluation=(), axes=AXES):
    config = PromptsConfig(train_subjects=subjects, eval_subjects=evaluation)
    return augment_prompts(write_prompts(config), axes)


def reading(cell, axes):
    if cell is None:
        return FaceReading(0, None, 0.0, {})
    probabilities = {
        axis.name: {known: float(known == name) for known in axis.classes}
        for axis, name in zip(axes, cell, strict=True)
    }
    return FaceReading(1, (0.0, 0.0, 9.0, 9.0), 0.9, probabilities)


class World:
    """Images of prompts, each with the cell a reader would see."""

    def __init__(self, table, axes=AXES):
        self.table, self.axes = table, axes
        self.rows = []

    def add(self, prompt_id, cell, n):
        for _ in range(n):
            self.rows.append((f"{prompt_id}-{len(self.rows):05d}", prompt_id, cell))
        return self

    def neutral(self, subject, counts):
        row = self.table[(self.table["subject"] == subject) & (self.table["kind"] == "neutral")].iloc[0]
        for cell, n in counts.items():
            self.add(row["prompt_id"], cell, n)
        return self

    def specific(self, subject, n):
        """`n` obedient images of every child, or `n[cell]`."""
        for _, row in self.table[(self.table["subject"] == subject) & (self.table["kind"] == "specific")].iterrows():
            cell = tuple(row["identity"].values())
            self.add(row["prompt_id"], cell, n if isinstance(n, int) else n.get(cell, 0))
        return self

    def tables(self):
        images = pd.DataFrame([row[:2] for row in self.rows], columns=["image_id", "prompt_id"])
        readings = [reading(cell, self.axes) for _, _, cell in self.rows]
        return images, filter_readings(readings, images["image_id"].tolist(), self.axes, AttributesConfig(), "fake@1")

    def cells(self):
        return {image_id: cell for image_id, _, cell in self.rows}

    def build(self, config=CONFIG):
        images, attributes = self.tables()
        return build_sets(self.table, images, attributes, self.axes, config)


def members(preferences, role):
    chosen = preferences[preferences["role"] == role]
    return [group["image_id"].tolist() for _, group in chosen.groupby("set_id", sort=True)]


def reasons(drops):
    assert set(drops["stage"]) <= {"preferences"}
    return dict(zip(drops["reason"], drops["n"], strict=True))


def usual(subject="doctor"):
    return World(prompts(subject)).specific(subject, 6).neutral(subject, WHITE_MEN)


def set_discrepancy(cells: Sequence[tuple[str, ...]], axes: Sequence[Axis]) -> float:
    """The discrepancy of one set, an image a cell; 0 at the target."""
    target = Target(axes)
    return float(target.discrepancies(target.count(np.array([target.cells.index(cell) for cell in cells]))))
