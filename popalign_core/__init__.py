"""The science of PopAlign: prompts, identities, sampling, attributes, preferences, training, evaluation."""

__all__ = [
    "attributes",
    "command",
    "config",
    "documents",
    "errors",
    "evaluation",
    "identities",
    "ids",
    "machine",
    "models",
    "portraits",
    "portraits_recipe",
    "preferences",
    "prompts",
    "report",
    "review",
    "sampling",
    "synthetic",
    "training",
]
