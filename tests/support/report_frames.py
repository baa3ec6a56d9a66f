"""Tables of a run's report, written by hand: the aligned model is fairer, and recalls as before."""

from typing import Any

import numpy as np
import pandas as pd

from popalign_core.config import Axis
from popalign_core.report.comparison_inputs import ComparisonInputs

GENDER = Axis(name="gender", classes=("male", "female"))


def rows_of(system: str, values: dict[tuple[str, str, str], tuple[float, float, float]], floor: float) -> list[Any]:
    return [
        (system, *key, value, low, high, 100, floor if "discrepancy" in key[1] else np.nan, "reader@1")
        for key, (value, low, high) in values.items()
    ]


def frame_of(rows: list[Any]) -> pd.DataFrame:
    names = ["system", "benchmark", "metric", "axis", "value", "ci_low", "ci_high", "n", "floor", "scorer"]
    return pd.DataFrame(rows, columns=names)


POOLED = ("neutral", "discrepancy_pooled", "gender")
EACH = ("neutral", "discrepancy_per_prompt", "gender")
RECALL = ("specific", "recall", "gender")
CLIP = ("generic", "clip_score", "")
BASE = {
    POOLED: (0.5, 0.4, 0.6),
    EACH: (0.6, 0.5, 0.7),
    ("neutral", "share:male", "gender"): (0.85, 0.8, 0.9),
    ("neutral", "share:female", "gender"): (0.15, 0.1, 0.2),
    ("neutral", "no_face_share", ""): (0.02, 0.0, 0.04),
    RECALL: (0.97, 0.95, 0.99),
    ("specific", "recall:male", "gender"): (0.99, 0.97, 1.0),
    CLIP: (30.0, 29.0, 31.0),
}
ALIGNED = {**BASE, POOLED: (0.1, 0.05, 0.15), EACH: (0.2, 0.1, 0.3), RECALL: (0.96, 0.94, 0.98)}
BETTER = {
    **dict.fromkeys(BASE, (0.0, -0.1, 0.1)),
    POOLED: (-0.4, -0.5, -0.3),
    EACH: (-0.4, -0.5, -0.3),
}


def inputs_of(change: dict[Any, Any] = BETTER, **over: Any) -> ComparisonInputs:
    per_prompt = pd.DataFrame(
        [
            ("base", "p1", "a photo of a nurse", "gender", 50, 60, 0.6, 0.08, "female", 0.92),
            ("base", "p2", "a photo of an engineer", "gender", 60, 60, 0.7, 0.07, "male", 0.99),
            ("aligned", "p1", "a photo of a nurse", "gender", 55, 60, 0.2, 0.08, "female", 0.6),
            ("aligned", "p2", "a photo of an engineer", "gender", 60, 60, 0.1, 0.07, "male", 0.55),
        ],
        columns=[
            "system",
            "prompt_id",
            "text",
            "axis",
            "n",
            "n_images",
            "discrepancy",
            "floor",
            "leading",
            "leading_share",
        ],
    )
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    fields: dict[str, Any] = {
        "title": "Run one",
        "reference": "base",
        "systems": ("base", "aligned"),
        "axes": (GENDER,),
        "metrics": frame_of(rows_of("base", BASE, 0.05) + rows_of("aligned", ALIGNED, 0.05)),
        "comparison": frame_of(rows_of("aligned", change, np.nan)).assign(reference="base", note=""),
        "per_prompt": per_prompt,
        "grids": {"a photo of a nurse": {"base": pictures, "aligned": pictures[::-1].copy()}},
        "drops": pd.DataFrame([("base", "no_face", 2, 3)], columns=["system", "reason", "n", "n_images"]),
        "training_log": pd.DataFrame({"step": [0, 1, 2], "name": "loss", "value": [0.69, 0.6, 0.5]}),
        "training_drops": pd.DataFrame({"stage": ["preferences"], "reason": ["too_few_images"], "n": [3]}),
        "reproducibility": {"command": "popalign run --preset portraits"},
        "notes": ("One seed only.",),
    }
    return ComparisonInputs(**{**fields, **over})
