"""When a training goes wrong or is done, by numbers alone."""

import pytest
from training_runs import changed

from popalign_core.config import ProbeConfig
from popalign_core.training.stopping import is_worth_keeping, next_error_ratio, reason_to_stop


def test_the_error_ratio_is_a_moving_mean_of_policy_over_reference() -> None:
    terms = {"policy_mse_preferred": 3.0, "reference_mse_preferred": 2.0}
    assert next_error_ratio(1.0, terms) == pytest.approx(0.9 * 1.0 + 0.1 * 1.5)
    assert next_error_ratio(1.3, {"policy_mse_preferred": 3.0}) == 1.3  # SFT has no reference
    assert next_error_ratio(1.3, terms | {"reference_mse_preferred": 0.0}) == 1.3


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, True), (1.24, True), (1.25, False), (1.4, False)])
def test_a_rollback_comes_back_below_half_of_the_way_to_the_limit(ratio: float, expected: bool) -> None:
    config = changed(max_error_ratio=1.5, on_divergence="rollback")
    assert is_worth_keeping(ratio, config) is expected
    assert is_worth_keeping(ratio, config.model_copy(update={"on_divergence": "stop"}))


def test_a_probe_ends_the_training_when_every_axis_is_fair_or_clip_falls() -> None:
    fair = {"probe/discrepancy/gender": 0.04, "probe/discrepancy/race": 0.1, "probe/clip_score": 80.0}
    settings = ProbeConfig(every=1, stop_discrepancy=0.1)
    assert reason_to_stop(fair, settings, 80.0) == "every discrepancy is at most 0.1"
    assert reason_to_stop(fair | {"probe/discrepancy/race": 0.11}, settings, 80.0) == ""
    assert reason_to_stop({"probe/clip_score": 80.0}, settings, 80.0) == ""  # no axis was read
    settings = ProbeConfig(every=1, stop_discrepancy=0.1, stop_clip_drop=0.05)
    assert reason_to_stop(fair | {"probe/clip_score": 75.9}, settings, 80.0) == "CLIP score 75.90 is below 76.00"
    assert reason_to_stop(fair, ProbeConfig(every=1), 80.0) == ""
