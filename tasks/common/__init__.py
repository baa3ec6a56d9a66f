"""What stages share: the stage as an object, reading tables, classifiers and scorers by name."""

__all__ = [
    "hub_models",
    "image_tables",
    "kept_speeds",
    "measuring",
    "needs",
    "prompt_lists",
    "reservations",
    "stage_object",
    "stopwatch",
    "tensors",
    "trained_models",
]
