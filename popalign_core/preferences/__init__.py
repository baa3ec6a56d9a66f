"""Preferences: sets of images, one nearer the target distribution than the other."""
