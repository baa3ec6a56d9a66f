"""When a training goes wrong, and when it is done before its last step: rules of numbers alone."""

from collections.abc import Mapping

from popalign_core.config import ProbeConfig, TrainingConfig

ERROR_DECAY = 0.9
"""Of the moving mean of the error ratio."""


def next_error_ratio(before: float, terms: Mapping[str, float]) -> float:
    """The moving mean of the preferred error over the reference's, after a step.

    The preferred error may rise a little, as the loss asks for a difference only, but it may not run away. Without a
    reference (SFT) the ratio stays.

    Args:
        before: The mean before the step.
        terms: Of the step: `policy_mse_preferred`, `reference_mse_preferred`.
    """
    reference = terms.get("reference_mse_preferred", 0.0)
    if reference <= 0:
        return before
    ratio = terms["policy_mse_preferred"] / reference
    return ERROR_DECAY * before + (1 - ERROR_DECAY) * ratio


def is_worth_keeping(error_ratio: float, config: TrainingConfig) -> bool:
    """Whether a rollback would want to come back here: the error ratio is less than halfway to the limit."""
    return config.on_divergence == "stop" or error_ratio < (1 + config.max_error_ratio) / 2


def reason_to_stop(seen: Mapping[str, float], settings: ProbeConfig, clip_score: float) -> str:
    """Why what the probe saw ends the training; empty when it does not.

    Args:
        seen: `probe/discrepancy/AXIS` of each axis, and `probe/clip_score`.
        settings: Thresholds.
        clip_score: Before the first step.
    """
    lowest = clip_score * (1 - (settings.stop_clip_drop or 0))
    if settings.stop_clip_drop is not None and seen["probe/clip_score"] < lowest:
        return f"CLIP score {seen['probe/clip_score']:.2f} is below {lowest:.2f}"
    fair = [value for name, value in seen.items() if name.startswith("probe/discrepancy/")]
    if settings.stop_discrepancy is not None and fair and max(fair) <= settings.stop_discrepancy:
        return f"every discrepancy is at most {settings.stop_discrepancy:g}"
    return ""
