"""The model card: what stands in its tables stays in its cells."""

from popalign_core.config import Axis
from popalign_core.presets import preset
from popalign_core.training.card import model_card


def test_a_bar_in_a_name_is_no_column() -> None:
    axis = Axis(name="who|m", classes=("a|b", "c"))
    config = preset("portraits").model_copy(update={"axes": (axis,)})
    row = {"benchmark": "neutral", "metric": "recall", "axis": "who|m", "value": 0.5, "ci_low": None, "ci_high": None}
    shown = [{**row, "metric": "discrepancy_pooled", "system": system} for system in ("base", "aligned")]
    card = model_card(config, {"attributes": "attributes-v1-0"}, [{"name": "loss", "value": 0.5}], shown)
    assert "| who\\|m | a\\|b | 0.5 |" in card
    assert "| neutral discrepancy_pooled who\\|m | 0.500 | 0.500 |" in card
    tables = [line.replace("\\|", "") for line in card.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {3, 4}
