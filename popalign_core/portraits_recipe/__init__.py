"""The recipe of the embedded model: from the data packs to the shipped weights, measured, with its card."""

__all__ = ["portraits_card", "recipe"]
