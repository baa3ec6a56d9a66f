"""The science of PopAlign: prompts, identities, sampling, attributes, preferences, training, evaluation."""

from popalign_core.models.torchvision_operators import watch_torchvision

__version__ = "0.2.0"
"""The version, and the only place where it stands: pyproject.toml reads it here."""

watch_torchvision()  # whatever is imported below may import it

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
    "machine",
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
