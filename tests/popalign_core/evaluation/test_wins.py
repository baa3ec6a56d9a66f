import numpy as np
import pandas as pd
import pytest

from popalign_core.config import EvaluationConfig
from popalign_core.errors import InputError
from popalign_core.evaluation.frames import SystemFrames
from popalign_core.evaluation.wins import COLUMNS, win_rates

CONFIG = EvaluationConfig()
NAMES = [f"p{number}" for number in range(8)]
PROMPTS = pd.DataFrame({"prompt_id": NAMES, "kind": "generic", "parent_id": None})
NO_ATTRIBUTES = pd.DataFrame({"image_id": [], "axis": [], "class": [], "classifier": [], "drop_reason": []})


def frames(name: str, values: list[float], scorer: str = "hps", version: str = "v2.1") -> SystemFrames:
    """Four images of each of 8 prompts, scored the same in each prompt."""
    rows = [(f"{name}-{p}-{i}", p, i, i, v) for p, v in zip(NAMES, values, strict=True) for i in range(4)]
    table = pd.DataFrame(rows, columns=["image_id", "prompt_id", "index", "seed", "value"])
    scores = table[["image_id", "value"]].assign(scorer=scorer, version=version)
    return SystemFrames(name, table.drop(columns="value"), NO_ATTRIBUTES, scores)


BASE = frames("base", [1.0] * 8)


def test_wins_and_ties_by_hand() -> None:
    table = win_rates(PROMPTS, BASE, [frames("aligned", [2.0] * 6 + [1.0, 0.0])], CONFIG)
    assert tuple(table.columns) == COLUMNS
    row = table.iloc[0]
    assert row[["system", "reference", "benchmark", "scorer", "version"]].tolist() == [
        *("aligned", "base", "generic", "hps", "v2.1")
    ]
    assert row[["n", "n_wins", "n_ties", "win_rate"]].tolist() == [32, 24, 4, (24 + 2) / 32]
    assert 0.4 < row["ci_low"] < 0.8125 < row["ci_high"] < 0.97
    # |6 - 1| = 5 of 7 coins: 2 of 128 differ by 7, 14 by 5, of which 12 are other exchanges and count half
    assert row["p_value"] == pytest.approx((2 + 2 + 12 / 2) / 128, abs=0.012)


def test_a_win_everywhere_is_as_sure_as_prompts_allow() -> None:
    row = win_rates(PROMPTS, BASE, [frames("aligned", [2.0] * 8)], CONFIG).iloc[0]
    assert (row["win_rate"], row["ci_high"]) == (1.0, 1.0)
    assert row["ci_low"] < 0.9
    assert row["p_value"] == pytest.approx(2 / 256, abs=0.003)


def test_only_scorers_of_both_in_one_version() -> None:
    assert len(win_rates(PROMPTS, BASE, [frames("aligned", [2.0] * 8, version="v2.0")], CONFIG)) == 0
    assert len(win_rates(PROMPTS, BASE, [frames("aligned", [2.0] * 8, "clip")], CONFIG)) == 0


def test_nobody_wins_by_diversity() -> None:
    both = [frames(name, [value] * 8, "diversity", "1") for name, value in (("base", 0.1), ("aligned", 0.2))]
    assert len(win_rates(PROMPTS, both[0], both[1:], CONFIG)) == 0


def test_one_prompt_has_a_rate_and_no_more() -> None:
    both = [SystemFrames(f.name, f.images.head(4), f.attributes, f.scores) for f in (BASE, frames("a", [2.0] * 8))]
    row = win_rates(PROMPTS, both[0], both[1:], CONFIG).iloc[0]
    assert (row["n"], row["win_rate"]) == (4, 1.0)
    assert row[["ci_low", "ci_high", "p_value", "p_adjusted"]].isna().all()


def test_a_score_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="'aligned' has 4 scores that are not finite"):
        win_rates(PROMPTS, BASE, [frames("aligned", [np.nan] + [2.0] * 7)], CONFIG)


def test_win_rates_are_corrected_for_their_number() -> None:
    """Two systems and two scorers are four tests; the clearest win is multiplied by 4."""
    base, *systems = (
        SystemFrames(f.name, f.images, f.attributes, pd.concat([f.scores, f.scores.assign(scorer="pick")]))
        for f in (BASE, frames("aligned", [2.0] * 8), frames("tuned", [2.0] * 7 + [0.0]))
    )
    table = win_rates(PROMPTS, base, systems, CONFIG)
    assert list(zip(table["system"], table["scorer"], strict=True)) == [
        *(("aligned", "hps"), ("aligned", "pick"), ("tuned", "hps"), ("tuned", "pick")),
    ]
    p_values = table["p_value"].to_numpy()
    assert p_values[0] == pytest.approx(2 / 256, abs=0.003)
    assert table["p_adjusted"].tolist() == pytest.approx([4 * p_values[0]] * 2 + [2 * p_values[2]] * 2)
