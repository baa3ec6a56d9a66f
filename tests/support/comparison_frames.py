"""Tables of a small comparison, written by hand: `fair` is fairer, `costly` too but recalls less, `same` neither."""

from typing import Any

import numpy as np
import pandas as pd

from popalign_core.config import Axis
from popalign_core.report.comparison_inputs import ComparisonInputs

AXES = (Axis(name="gender", classes=("male", "female")),)
SYSTEMS = ("base", "fair", "costly", "same")
NAN = float("nan")
POOLED = ("neutral", "discrepancy_pooled", "gender")
EACH = ("neutral", "discrepancy_per_prompt", "gender")
RECALL = ("specific", "recall", "all")
CLIP = ("neutral", "clip_score", "")
PICK = ("generic", "pick_score", "")
VALUES: dict[tuple[str, str, str], tuple[float, ...]] = {
    POOLED: (0.5, 0.1, 0.2, 0.49),
    EACH: (0.6, 0.2, 0.3, 0.58),
    ("neutral", "share:male", "gender"): (0.85, 0.57, 0.64, 0.84),
    ("neutral", "share:female", "gender"): (0.15, 0.43, 0.36, 0.16),
    ("neutral", "kl", "gender"): (0.4, 0.05, 0.1, 0.39),
    ("neutral", "no_face_share", ""): (0.02, 0.03, 0.02, 0.02),
    CLIP: (30.0, 30.1, 29.0, 30.0),
    RECALL: (0.97, 0.965, 0.85, 0.97),
    ("specific", "recall:male", "gender"): (0.98, 0.97, 0.9, 0.98),
    PICK: (21.0, NAN, 20.8, 21.0),
}
"""By measure, in the order of `SYSTEMS`."""
HALF_WIDTH = {"clip_score": 0.5, "pick_score": 0.3}
"""Of intervals; .04 for all other measures."""
WHY = "not measured: no weights for PickScore; set evaluation.scorers"
FLOORS = {"discrepancy_pooled": 0.02, "discrepancy_per_prompt": 0.09}


def metrics() -> pd.DataFrame:
    """All systems, one below the other."""
    return pd.DataFrame([
        _row(system, key, values[n], FLOORS.get(key[1], NAN), WHY)
        for n, system in enumerate(SYSTEMS)
        for key, values in VALUES.items()
    ])  # fmt: skip


def comparison() -> pd.DataFrame:
    """Every system minus base; intervals half as wide; differences to be told from zero have a small p-value."""
    rows = []
    for n, system in enumerate(SYSTEMS[1:], start=1):
        for key, values in VALUES.items():
            row = _row(system, key, values[n] - values[0], NAN, WHY) | {"reference": "base"}
            half = HALF_WIDTH.get(key[1], 0.04)
            p_value = 0.5 if abs(row["value"]) < half else 0.001
            tested = ":" not in key[1] and row["value"] == row["value"]
            rows.append(row | {"p_value": p_value if tested else NAN, "p_adjusted": p_value * 2 if tested else NAN})
    return pd.DataFrame(rows)


def inputs(**over: Any) -> ComparisonInputs:
    """What a page is made of."""
    prompts = [("p1", "a photo of a nurse", 0.6), ("p2", "a photo of an engineer", 0.7)]
    per_prompt = pd.DataFrame([
        (system, prompt, text, "gender", 60, 60, value / (n + 1), 0.09, "male", 0.9)
        for n, system in enumerate(SYSTEMS)
        for prompt, text, value in prompts
    ], columns=["system", "prompt_id", "text", "axis", "n", "n_images", "discrepancy", "floor", "leading",
                "leading_share"])  # fmt: skip
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    wins = pd.DataFrame([
        {"system": system, "reference": "base", "benchmark": "neutral", "scorer": "clip_score", "version": "v1",
         "n": 100, "n_wins": 60, "n_ties": 10, "win_rate": rate, "ci_low": rate - 0.1, "ci_high": rate + 0.1,
         "p_value": 0.004, "p_adjusted": 0.012}
        for system, rate in (("fair", 0.65), ("costly", 0.3), ("same", 0.5))
    ])  # fmt: skip
    fields: dict[str, Any] = {
        "title": "Four systems",
        "reference": "base",
        "systems": SYSTEMS,
        "axes": AXES,
        "metrics": metrics(),
        "comparison": comparison(),
        "per_prompt": per_prompt,
        "wins": wins,
        "grids": {"a photo of a nurse": dict.fromkeys(SYSTEMS, pictures)},
        "drops": pd.DataFrame([("fair", "no_face", 3, 100)], columns=["system", "reason", "n", "n_images"]),
        "costs": pd.DataFrame([("fair", "training", 750.0, "steps")], columns=["system", "what", "value", "unit"]),
        "reproducibility": {"command": "popalign compare base fair costly same"},
        "notes": ("Demonstration only.",),
    }
    return ComparisonInputs(**{**fields, **over})


def _row(system: str, key: tuple[str, str, str], value: float, floor: float, why: str) -> dict[str, Any]:
    half, known = HALF_WIDTH.get(key[1], 0.04), value == value
    return dict(zip(("benchmark", "metric", "axis"), key, strict=True)) | {
        "system": system,
        "value": value,
        "ci_low": value - half,
        "ci_high": value + half,
        "n": 100 if known else 0,
        "floor": floor if known else NAN,
        "scorer": f"{key[1]}@1" if key[1].endswith("score") else "reader@1",
        "note": "" if known else why,
    }
