"""The science of PopAlign: prompts, identities, sampling, attributes, preferences, training, evaluation."""

__all__ = [
    "attributes",
    "command",
    "config",
    "documents",
    "downloads",
    "errors",
    "evaluation",
    "identities",
    "ids",
    "models",
    "portraits",
    "portraits_recipe",
    "preferences",
    "prompts",
    "report",
    "review",
    "sampling",
    "sources",
    "synthetic",
    "training",
]
