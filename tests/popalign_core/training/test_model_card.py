"""The model card: what stands in its tables stays in its cells."""

from popalign_core.config import Axis, ModelConfig, TrainingConfig
from popalign_core.training.model_card import describe_base, model_card


def test_a_bar_in_a_name_is_no_column() -> None:
    axis = Axis(name="who|m", classes=("a|b", "c"))
    row = {"benchmark": "neutral", "metric": "recall", "axis": "who|m", "value": 0.5, "ci_low": None, "ci_high": None}
    shown = [{**row, "metric": "discrepancy_pooled", "system": system} for system in ("base", "aligned")]
    card = model_card(
        "`portraits`",
        TrainingConfig(),
        [axis],
        {"attributes": "attributes-v1-0"},
        [{"name": "loss", "value": 0.5}],
        shown,
    )
    assert "| who\\|m | a\\|b | 0.5 |" in card
    assert "| neutral discrepancy_pooled who\\|m | 0.500 | 0.500 |" in card
    tables = [line.replace("\\|", "") for line in card.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {3, 4}


def test_the_base_model_is_named_where_its_name_is_known() -> None:
    told = describe_base(ModelConfig(name="owner/name", revision="0a1b", lora="mine.safetensors", lora_scale=0.5))
    assert told == "`owner/name @ 0a1b` with the LoRA `mine.safetensors` at 0.5"
    named = model_card(told, TrainingConfig(), [], {}, [], name="owner/name")
    assert "\nbase_model: owner/name\n" in named
    assert "\n# owner/name, trained by PopAlign\n" in named
    unnamed = model_card("the weights `0f1e`", TrainingConfig(), [], {}, [])
    assert "base_model" not in unnamed
    assert "Base model: the weights `0f1e`. Objective: `popalign`" in unnamed
