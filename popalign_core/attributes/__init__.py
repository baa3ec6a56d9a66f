"""Attributes: what a face reader sees in an image, and which images are dropped and why."""
