"""What a page cannot say, and that figures of too few images mean nothing."""

import pandas as pd
import pytest

from popalign_core.report.limits import few_images
from popalign_core.report.training_section import training_curves


@pytest.mark.parametrize(
    ("floors", "said"),
    [
        ((0.02, 0.03), None),
        ((0.1,), None),
        ((0.163,), "a perfectly fair model would show a discrepancy of 0.16 too"),
        ((0.02, 0.354), "a perfectly fair model would show a discrepancy of 0.35 too"),
        ((float("nan"),), None),
        ((), None),
    ],
)
def test_figures_of_too_few_images_mean_nothing(floors: tuple[float, ...], said: str | None) -> None:
    rows = [{"metric": "discrepancy_pooled", "floor": floor} for floor in floors]
    rows.append({"metric": "discrepancy_per_prompt", "floor": 0.9})  # of single prompts, which always are few images
    found = few_images(rows)
    assert [said in sentence for sentence in found if said] == ([True] if said else [])
    assert len(found) == (said is not None)


def test_training_curves_are_named_in_words() -> None:
    names = ["loss", "g_preferred", "policy_mse_dispreferred", "grad_norm", "of_its_own"]
    log = pd.DataFrame([{"step": step, "name": name, "value": 0.5} for name in names for step in (0, 1)])
    page = training_curves(log)
    assert [name for name in names if "_" in name and name in page] == []
    assert "Squared error of the noise, trained model, dispreferred images" in page
    assert "Of its own" in page
