"""Preferences: sets of images, one nearer the target distribution than the other."""

__all__ = ["chain", "image_pairs", "members", "pools", "retained", "set_pairs", "set_selection", "target"]
